"""This file knows how a model becomes one for a proof: a small one of its architecture, or itself without dropout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from swift.core.errors import ModelError
from swift.models.info import ModelInfo, read_json, text_config
from swift.models.load import load_config
from swift.models.precision import torch_dtype
from swift.models.weights import INDEXES, weight_files

LAYERS = 2
SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 8, "state_size": 8,
    "intermediate_size_mlp": 128, "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 0,
}  # fmt: skip
"""Sizes as configs name them -> what a small model has at most."""
DEVIATION = 0.1
"""Of random weights: large enough that attention and logits are not flat, as those of a trained model are not."""


def shrink(info: ModelInfo, folder: Path) -> int:
    """Write a small model with the architecture, vocabulary and tokenizer of another; its number of parameters.

    Only the config and the tokenizer of the other are read. Weights are random, the same at every call. Raises
    ModelError for an architecture that cannot be made smaller in this way.
    """
    config = load_config(info)
    text = config.get_text_config()
    _shrink(text)
    _without_dropout(text)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch_dtype(info.dtype)).eval()
            logits = model(input_ids=torch.arange(8)[None], use_cache=False).logits
    except (ValueError, RuntimeError, AssertionError, AttributeError, IndexError, TypeError, KeyError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"--tiny true: a small {info.model_type} cannot be made from {info.path}: {first}. Prove the model itself, "
            f"without --tiny."
        ) from error
    if not logits.isfinite().all():
        raise ModelError(f"--tiny true: a small {info.model_type} computes no finite numbers. Drop --tiny.")
    _mirror(info.path, folder)
    model.save_pretrained(folder)
    return model.num_parameters()


def still(info: ModelInfo, folder: Path) -> list[str]:
    """Write a view of a model whose config has no dropout, linking to its weights; what was set to 0, [] for nothing.

    Without dropout in its config nothing is written.
    """
    config = read_json(info.path / "config.json")
    changed = sorted(_dropouts(config)) + sorted(_dropouts(text_config(config)))
    if not changed:
        return []
    _mirror(info.path, folder)
    for file in [*weight_files(info.path), *(info.path / name for name in INDEXES)]:
        if file.is_file():
            (folder / file.name).symlink_to(file.resolve())
    for part in (config, text_config(config)):
        assert isinstance(part, dict), "JSON was read"
        part.update(dict.fromkeys(_dropouts(part), 0.0))
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return sorted(set(changed))


def _shrink(config: PreTrainedConfig) -> None:
    """Make the sizes of a config small, in place; relations between them stay as the architecture needs them."""
    known = config.to_dict()
    layers = min(LAYERS, int(config.num_hidden_layers))
    kinds = known.get("layer_types")
    if kinds:  # keep one layer of each kind
        first_of_kind = sorted({kind: index for index, kind in reversed(list(enumerate(kinds)))}.values())
        chosen = sorted({*first_of_kind, *range(layers)} if len(first_of_kind) > layers else {*first_of_kind})
        chosen = chosen if len(chosen) >= layers else list(range(layers))
        config.layer_types = [kinds[index] for index in chosen]
        layers = len(chosen)
    config.num_hidden_layers = layers
    for name, size in SIZES.items():
        value = vars(config).get(_own_name(config, name))
        if isinstance(value, int) and not isinstance(value, bool) and value > size > 0:
            setattr(config, name, size)
    if known.get("num_key_value_heads", 0) == known.get("num_attention_heads"):
        config.num_key_value_heads = config.num_attention_heads
    if "initializer_range" in known:
        config.initializer_range = DEVIATION


def _own_name(config: PreTrainedConfig, name: str) -> str:
    """The name under which this config keeps a size: `n_embd` for `hidden_size` in GPT-2."""
    return config.attribute_map.get(name, name)


def _without_dropout(config: PreTrainedConfig) -> None:
    for name in _dropouts(config.to_dict()):
        setattr(config, name, 0.0)


def _dropouts(config: Mapping[str, Any]) -> list[str]:
    """The names of the probabilities of dropout that are not 0."""
    return [
        name for name, value in config.items()
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float) and value > 0
    ]  # fmt: skip


def _mirror(source: Path, folder: Path) -> None:
    """Copy the small files of a checkpoint: everything but weights and folders."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {file.name for file in weight_files(source)} | set(INDEXES)
    for file in source.iterdir():
        if file.is_file() and file.name not in weights and file.suffix not in (".safetensors", ".bin", ".pt", ".pth"):
            shutil.copyfile(file, folder / file.name)
