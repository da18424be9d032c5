"""This file knows how options were called in releases of version 2 and 3 of the command line, and what they are now."""

from __future__ import annotations

_VLLM = (
    "gpu_memory_utilization", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size",
    "enable_expert_parallel", "max_num_seqs", "disable_custom_all_reduce", "enforce_eager", "limit_mm_per_prompt",
    "max_lora_rank", "enable_prefix_caching", "use_async_engine", "reasoning_parser", "speculative_config",
)  # fmt: skip
_SGLANG = (
    "tp_size", "pp_size", "dp_size", "ep_size", "enable_ep_moe", "mem_fraction_static", "context_length",
    "disable_cuda_graph", "kv_cache_dtype", "enable_dp_attention",
)  # fmt: skip
_LMDEPLOY = ("tp", "session_len", "cache_max_entry_count", "quant_policy", "vision_batch_size")

RENAMED: dict[str, str] = {
    "train_type": "tuner_type",
    "sft_type": "tuner_type",
    "custom_register_path": "external_plugins",
    "model_id_or_path": "model",
    "template_type": "template",
    "dtype": "torch_dtype",
    "use_flash_attn": "attn_impl",
    "quantization_bit": "quant_bits",
    "ckpt_dir": "adapters",
    "batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "lora_target_modules": "target_modules",
    "lora_target_regex": "target_regex",
    "lora_modules_to_save": "modules_to_save",
    "lora_dropout_p": "lora_dropout",
    "lora_bias_trainable": "lora_bias",
    "init_lora_weights": "init_weights",
    "dataset_test_ratio": "split_dataset_ratio",
    "dataset_seed": "data_seed",
    "preprocess_num_proc": "dataset_num_proc",
    "add_output_dir_suffix": "add_version",
    **{name: f"vllm_{name}" for name in _VLLM},
    **{name: f"sglang_{name}" for name in _SGLANG},
    **{name: f"lmdeploy_{name}" for name in _LMDEPLOY},
}
"""Old name -> the name of today."""
