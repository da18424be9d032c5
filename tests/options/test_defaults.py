"""Derived defaults: each follows from other options, says why, and leaves alone what somebody decided."""

from __future__ import annotations

from pathlib import Path

import pytest

from swift.options import commands
from swift.options.declare import Origin, Source, build, flags
from swift.options.defaults import DERIVATIONS, derive
from swift.options.derivations import processes

RLHF = {"model": "owner/name", "dataset": ["d.jsonl"]}
CASES = [
    ("load_args", commands.Sft, {}, False),
    ("load_args", commands.Infer, {}, True),
    ("load_args", commands.MergeLora, {}, True),
    ("truncation_strategy", commands.Sft, {}, "delete"),
    ("truncation_strategy", commands.Rlhf, {"rlhf_type": "dpo"}, "delete"),
    ("truncation_strategy", commands.Rlhf, {"rlhf_type": "gkd"}, "left"),
    ("padding_side", commands.Rlhf, {"rlhf_type": "ppo"}, "left"),
    ("padding_side", commands.Rlhf, {"rlhf_type": "dpo"}, "right"),
    ("stream", commands.Infer, {"model": "m"}, True),
    ("stream", commands.Infer, {"model": "m", "val_dataset": ["v"]}, False),
    ("stream", commands.Infer, {"model": "m", "dataset": ["d"], "split_dataset_ratio": 0.1}, False),
    ("stream", commands.Infer, {"model": "m", "num_beams": 4}, False),
    ("stream", commands.App, {"model": "m"}, True),
    ("stream", commands.Deploy, {"model": "m"}, False),
    ("output_dir", commands.Sft, {"model": "owner/name"}, str(Path("output/name").absolute())),
    ("output_dir", commands.Sft, {"model": "/some/where/tiny/"}, str(Path("output/tiny").absolute())),
    ("output_dir", commands.Sft, {}, None),
    ("output_dir", commands.Export, {"model": "owner/name"}, None),
    ("gradient_accumulation_steps", commands.Sft, {}, 16),
    ("gradient_accumulation_steps", commands.Sft, {"per_device_train_batch_size": 3}, 6),
    ("gradient_accumulation_steps", commands.Sft, {"per_device_train_batch_size": 32}, 1),
    ("gradient_accumulation_steps", commands.Rlhf, {"rlhf_type": "grpo"}, 1),
    ("learning_rate", commands.Sft, {"tuner_type": "full"}, 1e-5),
    ("learning_rate", commands.Sft, {"tuner_type": "lora"}, 1e-4),
    ("vit_gradient_checkpointing", commands.Sft, {"gradient_checkpointing": False}, False),
    ("metric_for_best_model", commands.Sft, {}, "loss"),
    ("metric_for_best_model", commands.Sft, {"predict_with_generate": True}, "rouge-l"),
    ("metric_for_best_model", commands.Rlhf, {"rlhf_type": "grpo"}, "reward"),
    ("metric_for_best_model", commands.Rlhf, {"rlhf_type": "ppo"}, None),
    ("greater_is_better", commands.Sft, {}, False),
    ("greater_is_better", commands.Sft, {"metric_for_best_model": "token_acc"}, True),
    ("greater_is_better", commands.Rlhf, {"rlhf_type": "ppo"}, None),
    ("eval_strategy", commands.Sft, {}, "no"),
    ("eval_strategy", commands.Sft, {"val_dataset": ["v"]}, "steps"),
    ("eval_strategy", commands.Sft, {"split_dataset_ratio": 0.1, "save_strategy": "epoch"}, "epoch"),
    ("eval_steps", commands.Sft, {"val_dataset": ["v"], "save_steps": 50}, 50),
    ("eval_steps", commands.Sft, {"save_steps": 50}, None),
    ("dataloader_num_workers", commands.Sft, {}, 1),
    ("dataloader_prefetch_factor", commands.Sft, {}, 2),
    ("dataloader_prefetch_factor", commands.Sft, {"dataloader_num_workers": 0}, None),
    ("optimizer", commands.Sft, {"lorap_lr_ratio": 16.0}, "lorap"),
    ("optimizer", commands.Sft, {"use_galore": True}, "galore"),
    ("optimizer", commands.Sft, {}, None),
    ("packing_length", commands.Sft, {"packing": True, "max_length": 128}, 128),
    ("packing_length", commands.Sft, {"max_length": 128}, None),
    ("lazy_tokenize", commands.Sft, {"packing": True}, False),
    ("lazy_tokenize", commands.Sft, {}, None),
    ("eval_metric", commands.Sft, {"predict_with_generate": True}, "nlg"),
    ("eval_metric", commands.Sft, {"task_type": "embedding", "loss_type": "infonce"}, "infonce"),
    ("eval_metric", commands.Sft, {"task_type": "embedding", "loss_type": "contrastive"}, "paired"),
    ("eval_metric", commands.Sft, {"task_type": "generative_reranker"}, "reranker"),
    ("eval_metric", commands.Sft, {}, None),
    ("swanlab_project", commands.Sft, {"report_to": ["swanlab"]}, "swiftlet"),
    ("swanlab_project", commands.Sft, {}, None),
    ("swanlab_exp_name", commands.Sft, {"report_to": ["all"], "output_dir": "out"}, "out"),
    ("llamapro_num_groups", commands.Sft, {"tuner_type": "llamapro", "llamapro_num_new_blocks": 6}, 6),
    ("llamapro_num_groups", commands.Sft, {}, None),
    ("lora_dropout", commands.Sft, {"target_parameters": ["experts.down_proj"]}, 0.0),
    ("lora_dropout", commands.Sft, {}, 0.05),
    ("use_logits_to_keep", commands.Sft, {"tuner_backend": "unsloth"}, False),
    ("use_logits_to_keep", commands.Sft, {}, None),
    ("beta", commands.Rlhf, {"rlhf_type": "dpo"}, 0.1),
    ("beta", commands.Rlhf, {"rlhf_type": "simpo"}, 2.0),
    ("beta", commands.Rlhf, {"rlhf_type": "grpo"}, 0.04),
    ("beta", commands.Rlhf, {"rlhf_type": "gkd"}, 0.5),
    ("loss_type", commands.Rlhf, {"rlhf_type": "dpo"}, ["sigmoid"]),
    ("loss_type", commands.Rlhf, {"rlhf_type": "grpo"}, ["grpo"]),
    ("loss_type", commands.Rlhf, {"rlhf_type": "orpo"}, None),
    ("loss_type", commands.Sft, {}, None),
    ("loss_type", commands.Sft, {"task_type": "embedding"}, "cosine_similarity"),
    ("loss_type", commands.Sft, {"task_type": "generative_reranker"}, "pointwise_reranker"),
    ("loss_type", commands.Sft, {"task_type": "seq_cls"}, None),
    ("task_type", commands.Sft, {}, "causal_lm"),
    ("task_type", commands.Sft, {"num_labels": 2}, "seq_cls"),
    ("task_type", commands.Sft, {"model": "Qwen/Qwen3-Embedding-0.6B"}, "embedding"),
    ("task_type", commands.Infer, {"model": "/models/Qwen3-Reranker-4B"}, "generative_reranker"),
    ("task_type", commands.Sft, {"model": "m", "model_type": "bge_reranker"}, "reranker"),
    ("ref_model", commands.Rlhf, {**RLHF, "tuner_type": "full"}, "owner/name"),
    ("ref_model", commands.Rlhf, {**RLHF, "tuner_type": "lora"}, None),
    ("ref_model", commands.Rlhf, {**RLHF, "tuner_type": "full", "rlhf_type": "cpo"}, None),
    ("ref_model", commands.Rlhf, {**RLHF, "tuner_type": "full", "rlhf_type": "grpo", "beta": 0.0}, None),
    ("teacher_deepspeed", commands.Rlhf, {"teacher_model": "t", "deepspeed": "zero3"}, "zero3"),
    ("teacher_deepspeed", commands.Rlhf, {"deepspeed": "zero3"}, None),
    ("remove_unused_columns", commands.Rlhf, {"rlhf_type": "grpo"}, False),
    ("remove_unused_columns", commands.Rlhf, {"rlhf_type": "dpo"}, True),
    ("steps_per_generation", commands.Rlhf, {"rlhf_type": "grpo", "gradient_accumulation_steps": 4}, 4),
    ("steps_per_generation", commands.Rlhf, {"rlhf_type": "grpo", "per_device_train_batch_size": 2, "generation_batch_size": 8}, 4),
    ("steps_per_generation", commands.Rlhf, {"rlhf_type": "dpo"}, None),
    ("generation_batch_size", commands.Rlhf, {"rlhf_type": "grpo", "per_device_train_batch_size": 4, "steps_per_generation": 3}, 12),
    ("num_generations_eval", commands.Rlhf, {"rlhf_type": "grpo", "num_generations": 4}, 4),
    ("epsilon_high", commands.Rlhf, {"rlhf_type": "grpo", "epsilon": 0.3}, 0.3),
    ("epsilon_high", commands.Rlhf, {"rlhf_type": "dpo"}, None),
    ("kl_in_reward", commands.Rlhf, {"rlhf_type": "grpo"}, False),
    ("kl_in_reward", commands.Rlhf, {"rlhf_type": "grpo", "advantage_estimator": "rloo"}, True),
    ("kl_in_reward", commands.Rlhf, {"rlhf_type": "grpo", "advantage_estimator": "rloo", "scale_rewards": "gdpo"}, False),
    ("scale_rewards", commands.Rlhf, {"rlhf_type": "grpo"}, "group"),
    ("scale_rewards", commands.Rlhf, {"rlhf_type": "grpo", "advantage_estimator": "rloo"}, "none"),
    ("scale_rewards", commands.Rlhf, {"rlhf_type": "grpo", "advantage_estimator": "reinforce_plus_plus"}, "batch"),
    ("cosine_max_len", commands.Rlhf, {"reward_funcs": ["cosine"], "max_completion_length": 99}, 99),
    ("soft_max_length", commands.Rlhf, {"reward_funcs": ["soft_overlong"], "max_completion_length": 99}, 99),
    ("soft_max_length", commands.Rlhf, {"reward_funcs": ["cosine"]}, None),
    ("vllm_enable_prefix_caching", commands.Rlhf, {"rlhf_type": "grpo", "use_vllm": True}, True),
    ("vllm_enable_prefix_caching", commands.Infer, {"infer_backend": "vllm"}, None),
    ("vllm_use_async_engine", commands.Infer, {"infer_backend": "vllm"}, False),
    ("vllm_use_async_engine", commands.Deploy, {"infer_backend": "vllm"}, True),
    ("vllm_use_async_engine", commands.Infer, {"infer_backend": "vllm", "task_type": "embedding"}, True),
    ("vllm_use_async_engine", commands.Rollout, {"multi_turn_scheduler": "s"}, True),
    ("vllm_use_async_engine", commands.Rollout, {}, False),
    ("served_model_name", commands.Deploy, {"model": "owner/name"}, "name"),
    ("studio_title", commands.App, {"model": "owner/name"}, "name"),
    ("verbose", commands.Deploy, {}, True),
    ("verbose", commands.Eval, {}, False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "cls", "values", "wanted"), CASES)
def test_a_default_follows_from_the_other_options(name, cls, values, wanted):
    command = derive(build(cls, values, {key: Source(Origin.COMMAND_LINE) for key in values}))
    found = command.values()[name]
    assert found == wanted
    assert type(found) is type(wanted)
    if wanted != flags(cls)[name].default:
        assert command.sources[name].origin is Origin.RULE
        assert command.sources[name].detail, "the reason is told"


def test_every_derivation_is_shown():
    assert {name for name, *_ in CASES} | {"optim"} == set(DERIVATIONS)


def test_the_optimizer_is_fused_where_torch_fuses_it(monkeypatch):
    for installed, wanted in {
        "2.7.1": "adamw_torch",
        "2.8.0": "adamw_torch_fused",
        "3.0.0+cpu": "adamw_torch_fused",
    }.items():
        monkeypatch.setattr("swift.options.defaults.version", lambda _, installed=installed: installed)
        assert derive(build(commands.Sft, {}, {})).values()["optim"] == wanted


@pytest.mark.parametrize("name", sorted({name for name, *_ in CASES}))
def test_what_somebody_gave_is_left_alone(name):
    """Not even by the value that would be derived: the source stays the user's."""
    for cls in (commands.Rlhf, commands.Sft, commands.Deploy, commands.App):
        if name in flags(cls):
            given = build(cls, {name: "mine"}, {name: Source(Origin.CHECKPOINT, "args.json")})
            if name in {
                "save_strategy",
                "gradient_accumulation_steps",
                "steps_per_generation",
                "generation_batch_size",
            }:
                given = build(cls, {name: 7}, {name: Source(Origin.CHECKPOINT, "args.json")})
            command = derive(given)
            assert command.values()[name] in {"mine", 7}
            assert command.sources[name] == Source(Origin.CHECKPOINT, "args.json")
            return
    raise AssertionError(f"no command has --{name}")


def test_deriving_twice_changes_nothing():
    for cls in (commands.Sft, commands.Rlhf, commands.Infer, commands.Rollout, commands.Export):
        once = derive(build(cls, {"model": "owner/name"}, {}))
        assert derive(once) == once


def test_accumulation_counts_the_processes_there_are_or_will_be(monkeypatch):
    monkeypatch.setenv("NPROC_PER_NODE", "4")
    monkeypatch.setenv("NNODES", "2")
    assert processes() == 8
    assert derive(build(commands.Sft, {}, {})).values()["gradient_accumulation_steps"] == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes() == 2
    assert derive(build(commands.Sft, {}, {})).values()["gradient_accumulation_steps"] == 8
