"""Tiny models of many architectures, for tests of what sees what."""

from __future__ import annotations

from typing import Any

SMALL = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip
WINDOW = {"sliding_window": 6}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "attn_layer_indices": [1]}

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {},
    "llama": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "mistral": WINDOW,
    "cohere2": WINDOW,
    "gemma2": {**WINDOW, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 2},
    "gemma3_text": WINDOW,
    "qwen3_moe": {**EXPERTS, "num_experts": 4},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {**WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **WINDOW, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32, "use_sliding_window": True,
        "max_window_layers": 2,
    },
    "llama4_text": {"attention_chunk_size": 6, "num_local_experts": 2, "intermediate_size_mlp": 48},
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True},
    "bamba": MAMBA,
    "mamba": {"state_size": 8},
    "qwen3_next": {
        **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32, "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
}  # fmt: skip
"""Name of the architecture -> what its config needs besides."""


def model(family: str, attn_implementation: str | None = None, **changes: Any) -> Any:
    """A causal language model of this architecture with random weights, in float32."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    known = CONFIG_MAPPING[family]().to_dict()
    shared = {name: value for name, value in SMALL.items() if name in known}
    config = CONFIG_MAPPING[family](**{**shared, **FAMILIES[family], **changes})
    chosen = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    return AutoModelForCausalLM.from_config(config, **chosen).eval()
