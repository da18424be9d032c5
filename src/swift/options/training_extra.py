"""This file knows the training arguments of transformers that the manual does not list, and the kind of each.

pt, sft and rlhf accept the names of TRAINING_EXTRA and hand them on; transformers validates them. The names of
NOT_TAKEN would have no effect here, or another flag decides: each says which. A test compares both tables with the
installed version, so that importing transformers is not needed to read a command line.
"""

from __future__ import annotations

TRAINING_EXTRA: dict[str, str] = {
    "accelerator_config": "json",
    "adam_epsilon": "float",
    "bf16": "bool",
    "dataloader_drop_last": "bool",
    "dataloader_in_order": "bool",
    "dataloader_multiprocessing_context": "str",
    "ddp_broadcast_buffers": "bool",
    "ddp_bucket_cap_mb": "int",
    "ddp_static_graph": "bool",
    "debug": "str",
    "disable_tqdm": "bool",
    "eval_delay": "float",
    "fp16": "bool",
    "include_num_input_tokens_seen": "str",
    "label_smoothing_factor": "float",
    "load_best_model_at_end": "bool",
    "log_level": "str",
    "log_level_replica": "str",
    "log_on_each_node": "bool",
    "logging_nan_inf_filter": "bool",
    "logging_strategy": "str",
    "optim_target_modules": "list",
    "skip_memory_metrics": "bool",
    "tf32": "bool",
    "torch_compile": "bool",
    "torch_compile_backend": "str",
    "torch_compile_mode": "str",
    "torch_empty_cache_steps": "int",
    "use_cpu": "bool",
    "warmup_steps": "float",
}
"""Name -> bool, int, float, str, list (of words) or json."""

_EVALUATION = "evaluation keeps three sums per row and no predictions, so there is nothing to arrange"
_HUB = "every checkpoint is pushed, to the default branch"
_TRACKER = "runs are named after their folder, --swanlab_exp_name names one of SwanLab"

NOT_TAKEN: dict[str, str] = {
    "activation_checkpointing": "use --gradient_checkpointing",
    "activation_checkpointing_kwargs": "use --gradient_checkpointing_kwargs",
    "auto_find_batch_size": "choose --per_device_train_batch_size, so that a run can be repeated",
    "batch_eval_metrics": _EVALUATION,
    "bf16_full_eval": "evaluation computes in the type of the training",
    "do_eval": "use --eval_strategy",
    "do_predict": "use swift infer",
    "do_train": "the command says it",
    "enable_jit_checkpoint": "SIGTERM always saves a checkpoint before the run stops",
    "eval_accumulation_steps": _EVALUATION,
    "eval_do_concat_batches": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "fp16_full_eval": "evaluation computes in the type of the training",
    "fsdp_config": "use --fsdp",
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "hub_strategy": _HUB,
    "include_for_metrics": _EVALUATION,
    "label_names": "labels are made from the conversations",
    "length_column_name": "lengths are known from the tokens",
    "liger_kernel_config": "--use_liger_kernel puts in all kernels that the model has",
    "local_rank": "the launcher sets it",
    "parallelism_config": "it is not available yet",
    "prediction_loss_only": _EVALUATION,
    "project": _TRACKER,
    "restore_callback_states_from_checkpoint": "no callback here keeps a state of its own",
    "run_name": _TRACKER,
    "trackio_bucket_id": _TRACKER,
    "trackio_space_id": _TRACKER,
    "trackio_static_space_id": _TRACKER,
    "train_sampling_strategy": "use --train_dataloader_shuffle",
    "use_cache": "training never keeps keys and values",
}
"""Name -> why it is not accepted, or which flag to use instead."""
