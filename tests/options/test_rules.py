"""Rules between options: what has no effect, what is not there yet, and what contradicts itself is refused by name."""

from __future__ import annotations

import inspect

import pytest

from swift.options import commands
from swift.options.case import case_of
from swift.options.declare import Origin, Source, build, flags
from swift.options.defaults import derive
from swift.options.rules import TABLES, broken

TRAIN = {"model": "owner/name", "dataset": ["d.jsonl"]}
DPO = {**TRAIN, "rlhf_type": "dpo"}
GRPO = {**TRAIN, "rlhf_type": "grpo", "reward_funcs": ["accuracy"], "per_device_train_batch_size": 8}
INFER = {"model": "owner/name", "val_dataset": ["d.jsonl"]}


def command_of(cls, values, extra=None):
    """The command as if every value had been typed."""
    made = build(cls, values, {name: Source(Origin.COMMAND_LINE) for name in values})
    return derive(made.model_copy(update={"extra": extra or {}}))


def said(cls, values, extra=None) -> list[str]:
    return [words.en for words in broken(command_of(cls, values, extra))]


# ------------------------------------------------------------------------------------------------------- what is fine


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (commands.Sft, TRAIN),
        (commands.Pt, {**TRAIN, "tuner_type": "full", "truncation_strategy": "split", "max_length": 128}),
        (commands.Sft, {**TRAIN, "tuner_type": "full", "freeze_parameters_ratio": 0.5, "trainable_parameters": ["lm_head"]}),
        (
            commands.Sft,
            {
                **TRAIN, "tuner_type": "lora", "lora_rank": 8, "lora_alpha": 32, "target_modules": ["all-linear"],
                "split_dataset_ratio": 0.01, "eval_steps": 50, "save_steps": 50, "save_total_limit": 2,
                "logging_steps": 5, "warmup_ratio": 0.05, "num_train_epochs": 1, "dataloader_num_workers": 4,
                "max_length": 2048, "output_dir": "output", "report_to": ["tensorboard"], "model_name": ["a", "b"],
            },
        ),
        (commands.Sft, {**TRAIN, "val_dataset": ["v.jsonl"], "eval_strategy": "epoch", "save_strategy": "epoch"}),
        (commands.Sft, {**TRAIN, "val_dataset": ["v.jsonl"], "eval_strategy": "epoch", "save_strategy": "no"}),
        (commands.Infer, INFER),
        (commands.Infer, {"model": "owner/name", "stream": True, "temperature": 0.0, "max_new_tokens": 64}),
        (commands.Infer, {**INFER, "metric": "acc", "max_batch_size": 16, "write_batch_size": -1, "result_path": "r"}),
        (commands.Infer, {"model": "owner/name", "dataset": ["d"], "split_dataset_ratio": 0.1}),
        (commands.Deploy, {"model": "owner/name", "port": 8001, "top_logprobs": 3}),
        (commands.MergeLora, {"adapters": ["owner/adapter"], "max_shard_size": "1GB"}),
        (commands.Export, {"adapters": ["owner/adapter"], "merge_lora": True, "safe_serialization": True}),
        (commands.Rlhf, {**DPO, "loss_type": ["sigmoid", "ipo"], "loss_weights": [1.0, 0.5]}),
        (commands.Rlhf, GRPO),
        (commands.WebUi, {"server_port": 7861}),
        (commands.Eval, {"eval_url": "http://localhost:8000/v1", "eval_dataset": ["gsm8k"]}),
    ],
)  # fmt: skip
def test_ordinary_commands_break_no_rule(cls, values):
    assert said(cls, values) == []


def test_off_values_are_never_refused():
    """null, false, nothing and a zero that is the default ask for nothing, wherever they stand."""
    off = {
        "packing_length": None, "use_dora": False, "freeze_parameters": [], "reft_args": None, "temperature": 0.0,
        "lisa_activated_layers": 0, "deepspeed": None, "streaming": False, "freeze_parameters_ratio": 0.0,
    }  # fmt: skip
    assert said(commands.Sft, {**TRAIN, **off}) == []
    assert said(commands.Sft, {**TRAIN, "temperature": 0.5}) != [], "it does matter here"


def test_defaults_that_nobody_asked_for_are_never_refused():
    for cls in (commands.Sft, commands.Pt, commands.Rlhf, commands.Infer, commands.Export, commands.Sample):
        made = derive(build(cls, {}, {}))
        refused = [w.en for w in broken(made) if "no effect" in w.en or "not available" in w.en]
        assert refused == [], cls.name


# ------------------------------------------------------------------------------------------------- what has no effect


@pytest.mark.parametrize(
    ("cls", "values", "flag", "reason"),
    [
        (commands.Sft, {**TRAIN, "packing_length": 2048}, "--packing_length 2048", "--packing is set"),
        (commands.Sft, {**TRAIN, "tuner_type": "full", "lora_rank": 8}, "--lora_rank 8", "--tuner_type is lora"),
        (commands.Sft, {**TRAIN, "freeze_parameters_ratio": 0.5}, "--freeze_parameters_ratio 0.5", "--tuner_type is full"),
        (commands.Sft, {**TRAIN, "shuffle_buffer_size": 9}, "--shuffle_buffer_size 9", "--streaming is set"),
        (commands.Sft, {**TRAIN, "galore_rank": 4}, "--galore_rank 4", "--use_galore is set"),
        (commands.Sft, {**TRAIN, "bnb_4bit_quant_type": "fp4"}, "--bnb_4bit_quant_type fp4", "--quant_method is bnb"),
        (commands.Sft, {**TRAIN, "num_labels": 2, "task_type": "embedding"}, "--num_labels 2", "--task_type is seq_cls"),
        (commands.Sft, {**TRAIN, "save_strategy": "epoch", "save_steps": 5}, "--save_steps 5", "--save_strategy is steps"),
        (commands.Sft, {**TRAIN, "eval_steps": 5}, "--eval_steps 5", "--eval_strategy is steps"),
        (commands.Sft, {**TRAIN, "max_steps": 5, "num_train_epochs": 2.0}, "--num_train_epochs 2.0", "--max_steps is -1"),
        (commands.Sft, {**TRAIN, "max_new_tokens": 9}, "--max_new_tokens 9", "--predict_with_generate"),
        (commands.Sft, {**TRAIN, "response_prefix": "So"}, "--response_prefix So", "swift infer"),
        (commands.Sft, {**TRAIN, "val_dataset": ["v"], "split_dataset_ratio": 0.1}, "--split_dataset_ratio 0.1", "--val_dataset is not set"),
        (commands.Sft, {**TRAIN, "dataloader_num_workers": 0, "dataloader_prefetch_factor": 2}, "--dataloader_prefetch_factor 2", "--dataloader_num_workers is set"),
        (commands.Sft, {**TRAIN, "gradient_checkpointing": False, "gradient_checkpointing_kwargs": {"use_reentrant": False}}, '--gradient_checkpointing_kwargs \'{"use_reentrant": false}\'', "--gradient_checkpointing is set"),
        (commands.Sft, {**TRAIN, "target_modules": ["q_proj"], "target_regex": "q"}, "--target_modules q_proj", "--target_regex is not set"),
        (commands.Sft, {**TRAIN, "report_to": ["none"], "logging_dir": "x"}, "--logging_dir x", "--report_to contains tensorboard"),
        (commands.Infer, {**INFER, "padding_free": True}, "--padding_free true", "swift sft"),
        (commands.Infer, {**INFER, "vllm_max_num_seqs": 4}, "--vllm_max_num_seqs 4", "--infer_backend is vllm"),
        (commands.Infer, {**INFER, "top_logprobs": 4}, "--top_logprobs 4", "--logprobs is set"),
        (commands.Infer, {"model": "owner/name", "columns": {"a": "b"}}, "--columns", "--val_dataset"),
        (commands.Sft, {"model": "owner/name", "cached_dataset": ["c"], "columns": {"a": "b"}}, "--columns", "--dataset"),
        (commands.Infer, {"model": "owner/name", "metric": "acc"}, "--metric acc", "--val_dataset"),
        (commands.Deploy, {"model": "owner/name", "val_dataset": ["v"]}, "--val_dataset v", "swift infer"),
        (commands.Rlhf, {**DPO, "cliprange": 0.1}, "--cliprange 0.1", "--rlhf_type is ppo"),
        (commands.Rlhf, {**DPO, "ref_model": "owner/ref"}, "--ref_model owner/ref", "--tuner_type is full"),
        (commands.Rlhf, {**GRPO, "vllm_server_port": 1}, "--vllm_server_port 1", "--use_vllm is set"),
        (commands.Rlhf, {**GRPO, "use_vllm": True, "vllm_server_host": "h"}, "--vllm_server_host h", "--vllm_mode is server"),
        (commands.Rlhf, {**GRPO, "tau_pos": 2.0}, "--tau_pos 2.0", "--loss_type contains sapo"),
        (commands.Sample, {"model": "owner/name", "prm_threshold": 0.5}, "--prm_threshold 0.5", "--prm_model is set"),
        (commands.Export, {"model": "owner/name", "group_size": 64}, "--group_size 64", "--quant_method is gptq"),
    ],
)  # fmt: skip
def test_an_option_without_effect_is_refused_with_its_reason(cls, values, flag, reason):
    sentences = [text for text in said(cls, values) if text.startswith(flag)]
    assert len(sentences) == 1
    assert "has no effect here" in sentences[0]
    assert reason in sentences[0]


def test_a_value_equal_to_the_default_is_refused_too_where_it_has_no_effect():
    assert any(
        "--lora_rank 8 has no effect" in text
        for text in said(commands.Sft, {**TRAIN, "tuner_type": "full", "lora_rank": 8})
    )


def test_both_languages_say_the_same_thing():
    words = broken(command_of(commands.Sft, {**TRAIN, "packing_length": 2048}))[0]
    assert words.en.startswith("--packing_length 2048 has no effect here: it applies when --packing is set.")
    assert words.zh.startswith("--packing_length 2048 在此不起作用：仅当设置了 --packing 时有效。")


# -------------------------------------------------------------------------------------------- what is not there yet


@pytest.mark.parametrize(
    ("cls", "values", "text"),
    [
        (
            commands.Export,
            {"model": "owner/name", "to_mcore": True},
            "--to_mcore true is not available yet: conversion to and from Megatron.",
        ),
        (commands.Sft, {**TRAIN, "freeze_vit": False}, "--freeze_vit false is not available yet"),
    ],
)
def test_what_is_not_available_yet_says_so(cls, values, text):
    assert any(text in sentence for sentence in said(cls, values))


@pytest.mark.parametrize(
    "values",
    [
        {"packing": False}, {"tuner_type": "lora"}, {"tuner_type": "full"}, {"report_to": ["none"]}, {"task_type": "causal_lm"},
        {"remove_unused_columns": True}, {"dataset_num_proc": 1}, {"init_weights": "gaussian"}, {"model_kwargs": {}},
    ],
)  # fmt: skip
def test_what_works_already_is_not_refused(values):
    assert said(commands.Sft, {**TRAIN, **values}) == []


# ---------------------------------------------------------------------------------------------------- contradictions

BENCHMARKS = {**TRAIN, "eval_use_evalscope": True, "eval_dataset": ["gsm8k"]}
CONTRADICTIONS = {
    "trackers_are_known": (commands.Sft, {**TRAIN, "report_to": ["wandbb"]}, {}, "--report_to wandbb"),
    "notifications_go_somewhere": (
        commands.Sft, {**TRAIN, "report_to": ["swanlab"], "swanlab_notification_method": "lark"}, {},
        "--swanlab_webhook_url",
    ),
    "replies_are_measured_where_there_are_any": (
        commands.Sft, {**TRAIN, "val_dataset": ["v"], "eval_metric": "nlg"}, {}, "--predict_with_generate",
    ),
    "a_model_is_named": (commands.Sft, {"dataset": ["d"]}, {}, "--model is missing"),
    "homes_are_known": (commands.Sft, {**TRAIN, "output_dir": "~nobody-here/x"}, {}, "~nobody-here is no home folder"),
    "named_paths_exist": (commands.Sft, {**TRAIN, "model": "/no/such/model"}, {}, "--model /no/such/model"),
    "split_is_for_pre_training": (commands.Sft, {**TRAIN, "truncation_strategy": "split"}, {}, "swift pt only"),
    "a_named_rope_needs_a_length": (commands.Sft, {**TRAIN, "rope_scaling": "yarn"}, {}, "--max_model_len"),
    "ray_needs_its_groups": (commands.Sft, {**TRAIN, "use_ray": True}, {}, "--device_groups"),
    "processes_divide_into_rows": (
        commands.Sft, {**TRAIN, "sequence_parallel_size": 3}, {}, "needs a multiple of 3 processes (there would be 1)",
    ),
    "a_shared_row_is_flat": (
        commands.Sft, {**TRAIN, "sequence_parallel_size": 2, "padding_side": "left", "optimizer": "muonclip"}, {},
        "does not work with --padding_side left, --optimizer muonclip",
    ),
    "training_needs_rows": (commands.Sft, {"model": "owner/name"}, {}, "--dataset is missing"),
    "a_stream_needs_an_end": (commands.Sft, {**TRAIN, "streaming": True}, {}, "--max_steps"),
    "streams_are_not_cached": (
        commands.Sft, {**TRAIN, "streaming": True, "max_steps": 1, "cached_dataset": ["owner/c"]}, {}, "--cached_dataset",
    ),
    "streams_are_prepared_as_they_come": (
        commands.Sft, {**TRAIN, "streaming": True, "max_steps": 1, "dataset_num_proc": 2}, {}, "--dataset_num_proc",
    ),
    "one_probability_per_data_set": (commands.Sft, {**TRAIN, "interleave_prob": [0.5, 0.5]}, {}, "got 2 for 1"),
    "lazy_rows_have_no_lengths": (commands.Sft, {**TRAIN, "lazy_tokenize": True, "packing": True}, {}, "--packing"),
    "grouping_needs_lengths_and_shuffling": (
        commands.Sft, {**TRAIN, "group_by_length": True, "train_dataloader_shuffle": False}, {}, "--group_by_length",
    ),
    "evaluation_has_rows": (commands.Sft, {**TRAIN, "eval_strategy": "steps"}, {}, "nothing to evaluate on"),
    "validation_rows_are_used": (
        commands.Sft, {**TRAIN, "val_dataset": ["v"], "save_strategy": "no"}, {}, "--val_dataset has no effect",
    ),
    "the_best_checkpoint_is_measured": (
        commands.Sft, {**TRAIN, "val_dataset": ["v"], "eval_steps": 30, "save_steps": 50},
        {"load_best_model_at_end": "true"}, "got steps/30 and steps/50",
    ),
    "benchmarks_are_named": (commands.Sft, {**TRAIN, "eval_use_evalscope": True}, {}, "--eval_dataset"),
    "benchmarks_come_with_evaluations": (
        commands.Sft, {**BENCHMARKS, "save_strategy": "no"}, {}, "--eval_use_evalscope has no effect",
    ),
    "settings_belong_to_a_benchmark": (
        commands.Sft, {**BENCHMARKS, "eval_dataset_args": {"arc": {}}}, {}, "has settings of arc",
    ),
    "benchmarks_are_answered_as_the_model_can": (
        commands.Sft, {**BENCHMARKS, "eval_generation_config": {"max_tokens": 8, "stream": True}}, {}, "without stream",
    ),
    "benchmarks_are_answered_in_words": (
        commands.Sft, {**BENCHMARKS, "task_type": "seq_cls", "num_labels": 2}, {}, "--task_type seq_cls makes none",
    ),
    "replies_need_rows": (
        commands.Sft, {**BENCHMARKS, "predict_with_generate": True}, {}, "--predict_with_generate has no rows",
    ),
    "one_way_to_warm_up": (commands.Sft, {**TRAIN, "warmup_ratio": 0.1}, {"warmup_steps": 5}, "--warmup_steps"),
    "weights_are_sharded_one_way": (
        commands.Sft, {**TRAIN, "deepspeed": "zero2", "fsdp": "fsdp2"}, {}, "--deepspeed and --fsdp",
    ),
    "sharding_places_the_weights": (
        commands.Sft, {**TRAIN, "deepspeed": "zero2", "device_map": "auto"}, {}, "--deepspeed and --device_map",
    ),
    "shards_are_written_while_training_waits": (
        commands.Sft, {**TRAIN, "deepspeed": "zero2", "use_flash_ckpt": True}, {}, "--deepspeed and --use_flash_ckpt",
    ),
    "a_divided_optimizer_is_of_one_kind": (
        commands.Sft, {**TRAIN, "deepspeed": "zero1", "tuner_type": "adalora", "optim": "adafactor"}, {},
        "--tuner_type adalora, --optim adafactor cannot be used together with --deepspeed zero1",
    ),
    "divided_weights_are_whole_nowhere": (
        commands.Sft, {**TRAIN, "deepspeed": {"zero_optimization": {"stage": 3}}, "init_weights": "pissa"}, {},
        "--init_weights pissa cannot be used together with --deepspeed, which leaves every process a part",
    ),
    "gradients_are_reduced_by_what_divides_them": (
        commands.Sft, {**TRAIN, "fsdp": "fsdp2", "ddp_find_unused_parameters": False}, {},
        "--ddp_find_unused_parameters has no effect with --fsdp fsdp2",
    ),
    "the_best_parts_are_there": (
        commands.Sft, {**TRAIN, "deepspeed": "zero2", "save_only_model": True}, {"load_best_model_at_end": "true"},
        "--load_best_model_at_end needs what --save_only_model leaves out",
    ),
    "deepspeed_names_no_other_optimizer": (
        commands.Sft, {**TRAIN, "deepspeed": {"optimizer": {"type": "AdamW"}}, "optim": "sgd"}, {},
        "--optim has no effect: the configuration of --deepspeed brings its own optimizer",
    ),
    "parts_are_saved_to_be_continued": (
        commands.Sft, {**TRAIN, "fsdp": "fsdp2", "save_only_model": True}, {}, "--fsdp fsdp2 and --save_only_model",
    ),
    "liger_is_for_text_on_one_device": (
        commands.Sft, {**TRAIN, "use_liger_kernel": True, "device_map": "auto"}, {}, "--use_liger_kernel",
    ),
    "a_loss_is_known": (commands.Sft, {**TRAIN, "loss_type": "nothing"}, {}, "--loss_type nothing: there is no such loss"),
    "a_loss_of_ones_own_sees_all_logits": (
        commands.Sft, {**TRAIN, "loss_type": "cross_entropy", "use_logits_to_keep": True}, {}, "--use_logits_to_keep",
    ),
    "tensor_parallelism_is_for_full_training": (
        commands.Sft, {**TRAIN, "deepspeed": "zero3", "deepspeed_autotp_size": 2}, {}, "got lora and zero3",
    ),
    "parts_of_matrices_are_of_one_kind": (
        commands.Sft,
        {**TRAIN, "tuner_type": "full", "deepspeed": "zero2", "deepspeed_autotp_size": 2, "predict_with_generate": True}, {},
        "--deepspeed_autotp_size 2 does not work with --predict_with_generate true",
    ),
    "whole_matrices_are_not_sharded": (
        commands.Sft, {**TRAIN, "use_galore": True, "deepspeed": "zero2"}, {}, "--use_galore and --deepspeed",
    ),
    "an_optimizer_is_known": (commands.Sft, {**TRAIN, "optimizer": "moun"}, {}, "Did you mean muon?"),
    "callbacks_are_known": (commands.Sft, {**TRAIN, "callbacks": ["gracefull_exit"]}, {}, "Did you mean graceful_exit?"),
    "one_optimizer_is_chosen": (
        commands.Sft, {**TRAIN, "optimizer": "muon", "lorap_lr_ratio": 16.0}, {}, "--optimizer muon and --lorap_lr_ratio",
    ),
    "a_named_optimizer_has_its_option": (commands.Sft, {**TRAIN, "optimizer": "galore"}, {}, "needs --use_galore"),
    "early_stopping_says_when": (commands.Sft, {**TRAIN, "callbacks": ["early_stop"]}, {}, "--early_stop_interval"),
    "muon_is_no_choice_of_optim": (
        commands.Sft, {**TRAIN, "optimizer": "muon", "optim": "adafactor"}, {}, "--optim adafactor has no effect",
    ),
    "qk_clip_scales_weights": (commands.Sft, {**TRAIN, "optimizer": "muonclip"}, {}, "--tuner_type full"),
    "a_schedule_that_warms_up": (
        commands.Sft, {**TRAIN, "lr_scheduler_type": "constant", "warmup_ratio": 0.1}, {}, "Use constant_with_warmup",
    ),
    "a_schedule_that_has_settings": (
        commands.Sft, {**TRAIN, "lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"min_lr": 1e-6}}, {},
        "which has no settings",
    ),
    "a_task_has_its_losses": (
        commands.Sft, {**TRAIN, "task_type": "embedding", "loss_type": "pointwise_reranker"}, {}, "There are: cosine",
    ),
    "a_metric_measures_its_task": (
        commands.Sft, {**TRAIN, "task_type": "reranker", "eval_metric": "paired"}, {}, "There are: reranker",
    ),
    "texts_that_are_read_have_no_learnt_tokens": (
        commands.Sft, {**TRAIN, "task_type": "embedding", "loss_scale": "all"}, {}, "--loss_scale has no effect",
    ),
    "scores_are_not_generated": (
        commands.Infer, {**INFER, "task_type": "seq_cls", "num_labels": 2, "max_new_tokens": 5}, {}, "--max_new_tokens",
    ),
    "results_can_be_compared": (
        commands.Infer, {**INFER, "task_type": "embedding", "val_dataset": ["owner/rows"], "metric": "acc"}, {},
        "--metric acc",
    ),
    "other_tasks_prepare_their_own_rows": (
        commands.Sft, {**TRAIN, "task_type": "embedding", "cached_dataset": ["owner/rows"]}, {}, "--load_from_cache_file",
    ),
    "a_server_can_be_made_to_ask_for_a_key": (
        commands.Deploy, {"model": "owner/name", "require_auth": True}, {}, "needs --api_key",
    ),
    "named_adapters_are_asked_for_by_clients": (
        commands.Infer, {**INFER, "adapters": ["mine=owner/adapter"]}, {}, "names are for swift deploy",
    ),
    "the_command_knows_the_task": (
        commands.App, {"model": "owner/name", "task_type": "embedding"}, {}, "not available yet with swift app",
    ),
    "training_goes_on_from_one_adapter": (
        commands.Sft, {**TRAIN, "adapters": ["owner/a", "owner/b"]}, {}, "got 2",
    ),
    "boft_blocks_are_given_once": (
        commands.Sft, {**TRAIN, "tuner_type": "boft", "boft_block_size": 4, "boft_block_num": 2}, {}, "--boft_block_num",
    ),
    "a_tuner_is_known": (commands.Sft, {**TRAIN, "tuner_type": "lorra"}, {}, "Did you mean lora?"),
    "matrices_can_begin_so": (
        commands.Sft, {**TRAIN, "tuner_type": "bone", "init_weights": "pissa"}, {}, "one of: true, false, bat.",
    ),
    "gradients_are_of_written_texts": (
        commands.Sft, {**TRAIN, "init_weights": "lora-ga", "task_type": "embedding"}, {}, "--task_type is embedding",
    ),
    "loftq_makes_up_for_what_is_lost": (
        commands.Sft, {**TRAIN, "init_weights": "loftq"}, {}, "Add --quant_method bnb --quant_bits 4",
    ),
    "bare_parameters_have_plain_lora": (
        commands.Sft, {**TRAIN, "target_parameters": ["experts.down_proj"], "use_dora": True, "lora_dropout": 0.1}, {},
        "Add --lora_dropout 0 --use_dora false.",
    ),
    "unsloth_makes_models_to_train": (
        commands.Infer, {**INFER, "tuner_backend": "unsloth"}, {}, "no effect with swift infer",
    ),
    "unsloth_loads_in_its_own_way": (
        commands.Sft, {**TRAIN, "tuner_backend": "unsloth", "init_weights": "pissa"}, {}, "--init_weights pissa",
    ),
    "a_tuner_of_ones_own_is_read_once": (
        commands.Sft, {**TRAIN, "tuner_type": "mine", "external_plugins": [__file__]},
        {"load_best_model_at_end": "true"}, "a tuner of your own",
    ),
    "ranks_shrink": (commands.Sft, {**TRAIN, "tuner_type": "adalora", "adalora_target_r": 12}, {}, "got 12 and 12"),
    "llamapro_groups_are_equal": (
        commands.Sft, {**TRAIN, "tuner_type": "llamapro", "llamapro_num_groups": 3}, {}, "4 is no multiple",
    ),
    "shifted_attention_knows_rows": (
        commands.Sft, {**TRAIN, "tuner_type": "longlora", "packing": True, "max_length": 64}, {}, "--packing cannot",
    ),
    "lisa_changes_what_is_trained": (
        commands.Sft, {**TRAIN, "tuner_type": "full", "lisa_activated_layers": 2, "deepspeed": "zero3"}, {},
        "--lisa_activated_layers and --deepspeed",
    ),
    "unsloth_knows_two_ways": (
        commands.Sft, {**TRAIN, "tuner_backend": "unsloth", "tuner_type": "vera"}, {}, "got vera",
    ),
    "the_loss_belongs_to_the_method": (commands.Rlhf, {**DPO, "loss_type": ["kto_pair"]}, {}, "kto_pair is no loss"),
    "only_dpo_mixes_losses": (
        commands.Rlhf, {**DPO, "loss_type": ["sigmoid", "ipo"], "loss_weights": [1.0]}, {}, "got 1 for 2",
    ),
    "one_reference_adapter": (commands.Rlhf, {**DPO, "ref_adapters": ["owner/a", "owner/b"]}, {}, "--ref_adapters"),
    "teachers_and_judges_are_named": (commands.Rlhf, {**TRAIN, "rlhf_type": "gkd"}, {}, "--teacher_model"),
    "one_weight_per_reward": (commands.Rlhf, {**GRPO, "reward_weights": [1.0, 1.0]}, {}, "got 2 for 1"),
    "the_soft_limit_lies_below_the_hard_one": (
        commands.Rlhf, {**GRPO, "reward_funcs": ["soft_overlong"], "soft_cache_length": 600}, {}, "got 600",
    ),
    "generations_are_counted_once": (
        commands.Rlhf, {**GRPO, "steps_per_generation": 2, "generation_batch_size": 16}, {}, "--generation_batch_size",
    ),
    "groups_fill_the_batch": (commands.Rlhf, {**GRPO, "num_generations": 3}, {}, "--num_generations 3"),
    "groups_fill_the_evaluation_batch": (commands.Rlhf, {**GRPO, "val_dataset": ["v"]}, {}, "--num_generations_eval 8"),
    "methods_that_generate_need_whole_rows": (
        commands.Rlhf, {**GRPO, "cached_dataset": ["owner/c"]}, {}, "--cached_dataset cannot",
    ),
    "rows_end_to_end_fit_the_method": (commands.Rlhf, {**GRPO, "packing": True}, {}, "--packing works with"),
    "prompts_end_where_they_end": (commands.Rlhf, {**GRPO, "truncation_strategy": "right"}, {}, "delete or left"),
    "turns_wait_for_each_other": (
        commands.Rlhf,
        {**GRPO, "use_vllm": True, "vllm_mode": "server", "async_generate": True, "multi_turn_scheduler": "s"}, {},
        "--async_generate and --multi_turn_scheduler",
    ),
    "gdpo_keeps_the_reward_pure": (
        commands.Rlhf, {**GRPO, "scale_rewards": "gdpo", "kl_in_reward": True}, {}, "--scale_rewards gdpo",
    ),
    "kto_compares_rows": (
        commands.Rlhf, {**TRAIN, "rlhf_type": "kto", "gradient_accumulation_steps": 1}, {}, "at least 2 rows",
    ),
    "vllm_gets_whole_weights": (
        commands.Rlhf, {**GRPO, "use_vllm": True, "deepspeed": "zero3", "ds3_gather_for_generation": False}, {},
        "--ds3_gather_for_generation",
    ),
    "beams_have_no_structure": (
        commands.Infer, {**INFER, "num_beams": 2, "structured_outputs_regex": "a+"}, {}, "--structured_outputs_regex cannot",
    ),
    "beams_do_not_stream": (commands.Infer, {**INFER, "num_beams": 2, "stream": True}, {}, "--num_beams 2"),
    "inference_reads_what_it_is_given": (
        commands.Infer, {"model": "owner/name", "dataset": ["d"]}, {}, "--dataset has no effect with swift infer",
    ),
    "merging_needs_an_adapter": (commands.MergeLora, {"model": "owner/name"}, {}, "--merge_lora needs --adapters"),
    "quantization_has_its_bits": (
        commands.Infer, {**INFER, "quant_method": "bnb", "quant_bits": 3}, {}, "has no --quant_bits 3, but 4 or 8",
    ),
    "quantized_weights_are_not_trained": (
        commands.Sft, {**TRAIN, "quant_method": "bnb", "quant_bits": 4, "tuner_type": "full"}, {}, "only adapters beside",
    ),
    "missing_weights_come_before_quantization": (
        commands.Sft, {**TRAIN, "quant_method": "bnb", "quant_bits": 4, "init_strategy": "zero"}, {}, "--init_strategy",
    ),
    "hqq_fits_one_device": (
        commands.Infer, {**INFER, "quant_method": "hqq", "quant_bits": 4, "device_map": {"": 0}}, {}, "on one device",
    ),
    "knobs_are_named_and_set": (
        commands.Sft, {**TRAIN, "model_kwargs": {"a-b": 1, "max_pixels": None, "fps": 2}}, {}, "'a-b', 'max_pixels' cannot",
    ),
    "merging_needs_whole_weights": (
        commands.Infer, {**INFER, "adapters": ["owner/a"], "merge_lora": True, "quant_method": "bnb"}, {}, "swift merge-lora",
    ),
    "other_engines_load_by_themselves": (
        commands.Infer, {**INFER, "infer_backend": "vllm", "attn_impl": "sdpa", "device_map": "cpu"}, {},
        "--attn_impl and --device_map has no effect",
    ),
    "other_engines_quantize_by_themselves": (
        commands.Infer, {**INFER, "infer_backend": "vllm", "quant_method": "bnb", "quant_bits": 4}, {},
        "use --vllm_quantization",
    ),
    "other_engines_search_no_beams": (
        commands.Infer, {**INFER, "infer_backend": "sglang", "num_beams": 2}, {}, "needs --infer_backend transformers",
    ),
    "new_tokens_stand_in_the_checkpoint": (
        commands.Infer, {**INFER, "infer_backend": "vllm", "new_special_tokens": ["<a>"]}, {}, "--merge_lora true",
    ),
    "other_tasks_have_their_engines": (
        commands.Infer, {**INFER, "infer_backend": "lmdeploy", "task_type": "embedding"}, {}, "got lmdeploy",
    ),
    "other_tasks_need_the_async_engine": (
        commands.Infer, {**INFER, "infer_backend": "vllm", "task_type": "embedding", "vllm_use_async_engine": False}, {},
        "--vllm_use_async_engine true",
    ),
    "a_server_needs_the_async_engine": (
        commands.Deploy, {"model": "owner/name", "infer_backend": "vllm", "vllm_use_async_engine": False}, {},
        "swift deploy needs --vllm_use_async_engine true",
    ),
    "copies_need_the_async_engine": (
        commands.Deploy,
        {"model": "owner/name", "infer_backend": "vllm", "vllm_data_parallel_size": 2, "vllm_use_async_engine": False}, {},
        "--vllm_data_parallel_size above 1",
    ),
    "rollouts_have_no_pipeline": (
        commands.Rollout, {"model": "owner/name", "vllm_pipeline_parallel_size": 2}, {}, "must be 1",
    ),
    "results_go_to_one_file": (
        commands.Sample, {"model": "owner/name", "output_file": "a/b.jsonl"}, {}, "--output_file a/b.jsonl",
    ),
    "a_part_has_a_number": (commands.Sample, {"model": "owner/name", "data_range": [3, 3]}, {}, "--data_range 3 3"),
    "distilling_asks_an_api": (commands.Sample, {"model": "owner/name", "sampler_type": "distill"}, {}, "client"),
    "replies_come_from_somewhere": (commands.Sample, {"sampler_engine": "no"}, {}, "--cache_files"),
    "an_export_makes_one_thing": (
        commands.Export, {"model": "owner/name", "to_ollama": True, "to_mcore": True}, {}, "--to_ollama and --to_mcore",
    ),
    "ollama_is_given_whole_models": (
        commands.Export, {"model": "owner/name", "adapters": ["owner/a"], "to_ollama": True}, {}, "Add --merge_lora true",
    ),
    "a_modelfile_leaves_weights_alone": (
        commands.Export, {"model": "owner/name", "to_ollama": True, "torch_dtype": "float16"}, {}, "--torch_dtype has no effect",
    ),
    "ollama_has_no_beams": (
        commands.Export, {"model": "owner/name", "to_ollama": True, "num_beams": 2}, {}, "no beam search",
    ),
    "a_page_has_somebody_who_answers": (commands.App, {}, {}, "--base_url, or --model or --adapters"),
    "a_page_over_a_server_leaves_the_model_to_it": (
        commands.App, {"base_url": "http://localhost:8000/v1", "model": "owner/name"}, {}, "--model: no effect together",
    ),
    "quantization_is_told_how": (commands.Export, {"model": "owner/name", "quant_method": "awq"}, {}, "for calibration"),
    "an_agent_template_is_known": (
        commands.Sft, {**TRAIN, "agent_template": "hermess"}, {}, "--agent_template hermess: there is no such agent template. "
        "Did you mean hermes?"),
    "a_pushed_model_has_an_id": (commands.Export, {"model": "owner/name", "push_to_hub": True}, {}, "--hub_model_id"),
}  # fmt: skip
"""Rule -> a command that breaks it, and what must be said."""
ELSEWHERE = {"a_template_is_known", "a_dialogue_has_one_partner", "one_launcher_starts_the_processes"}
"""Rules that depend on more than options; each has a test of its own below."""


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_refused_by_its_own_rule(name):
    cls, values, extra, text = CONTRADICTIONS[name]
    command = command_of(cls, values, extra)
    check = {rule.__name__: rule for table in TABLES for rule in table}[name]
    words = check(case_of(command))
    assert words is not None
    assert text in words.en
    assert words in broken(command), "the rule is registered for this command"
    assert words.zh != words.en


def test_every_rule_has_a_command_that_breaks_it():
    assert {check.__name__ for table in TABLES for check in table} == set(CONTRADICTIONS) | ELSEWHERE


def test_every_rule_says_what_it_is_about():
    for table in TABLES:
        for check in table:
            assert inspect.getdoc(check), check.__name__


@pytest.mark.parametrize(
    "values",
    [
        {"lorap_lr_ratio": 16.0}, {"optimizer": "lorap", "lorap_lr_ratio": 16.0}, {"optimizer": "muon"},
        {"tuner_type": "full", "use_galore": True, "galore_rank": 4}, {"tuner_type": "full", "optimizer": "muonclip"},
        {"optimizer": "mine", "external_plugins": ["pyproject.toml"], "optim": "sgd"}, {"callbacks": ["graceful_exit"]},
        {"val_dataset": ["owner/v"], "early_stop_interval": 2, "callbacks": ["early_stop"]},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.1},
    ],
)  # fmt: skip
def test_what_fits_together_is_not_refused(values):
    assert said(commands.Sft, {**TRAIN, **values}) == []


def test_an_option_that_is_an_optimizer_chooses_it():
    assert derive(command_of(commands.Sft, {**TRAIN, "lorap_lr_ratio": 16.0})).training.optimizer == "lorap"
    galore = {**TRAIN, "tuner_type": "full", "use_galore": True}
    assert derive(command_of(commands.Sft, galore)).training.optimizer == "galore"
    assert derive(command_of(commands.Sft, TRAIN)).training.optimizer is None


def test_all_broken_rules_are_reported_together():
    found = said(commands.Sft, {"lora_ga_iters": 3, "eval_strategy": "steps", "push_to_hub": True})
    for text in (
        "--model is missing",
        "--dataset is missing",
        "--lora_ga_iters 3",
        "--eval_strategy steps",
        "--push_to_hub needs --hub_model_id",
    ):
        assert any(text in sentence for sentence in found), text


def test_a_dialogue_is_not_shared_by_processes(monkeypatch):
    assert said(commands.Infer, {"model": "owner/name"}) == []
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    assert any("A dialogue cannot be shared by 2 processes" in s for s in said(commands.Infer, {"model": "owner/name"}))
    assert said(commands.Infer, INFER) == []


def test_a_path_that_exists_and_an_id_of_a_hub_are_left_alone(tmp_path):
    assert said(commands.Sft, {**TRAIN, "model": str(tmp_path)}) == []
    assert said(commands.Sft, {**TRAIN, "model": "owner/name"}) == []
    missing = tmp_path / "gone"
    for flag, value in {
        "adapters": [str(missing)],
        "resume_from_checkpoint": "gone",
        "external_plugins": ["p.py"],
        "model": "./" + "a" * 5000,
        "custom_dataset_info": ["a" * 5000],
    }.items():
        assert any("no such file" in sentence for sentence in said(commands.Sft, {**TRAIN, flag: value})), flag


def test_every_condition_can_be_asked_of_every_command_that_has_the_flag():
    for cls in (
        commands.Sft,
        commands.Rlhf,
        commands.Infer,
        commands.Rollout,
        commands.Eval,
        commands.Sample,
        commands.WebUi,
    ):
        values = derive(build(cls, {}, {})).values()
        for flag in flags(cls).values():
            if flag.marks.when:
                assert isinstance(flag.marks.when.holds(values), bool)


def test_an_unknown_template_is_answered_with_the_nearest_unless_plugins_may_bring_it():
    (text,) = said(commands.Sft, {**TRAIN, "template": "qwen3x"})
    assert "--template qwen3x" in text
    assert "Did you mean qwen3?" in text
    assert not any(
        "template" in text for text in said(commands.Sft, {**TRAIN, "template": "x", "external_plugins": ["p"]})
    )


GROUPS = {"nproc_per_node": 2, "all": {"device": "CPU", "ranks": 2, "workers": ["default"]}}


def test_processes_are_started_by_torchrun_or_by_ray(monkeypatch):
    values = {**TRAIN, "use_ray": True, "device_groups": GROUPS}
    monkeypatch.delenv("NPROC_PER_NODE", raising=False)
    assert said(commands.Sft, {**values, "sequence_parallel_size": 2}) == []
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    assert any("NPROC_PER_NODE asks torchrun for others" in s for s in said(commands.Sft, values))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "ray")
    assert said(commands.Sft, values) == []


@pytest.mark.parametrize(("groups", "text"), [
    ({"nproc_per_node": 2}, "there is no group"),
    ({**GROUPS, "more": {"device": "CPU", "ranks": 1, "workers": ["prm"]}}, "more would do nothing"),
    ({"all": GROUPS["all"]}, "nproc_per_node must say"),
])  # fmt: skip
def test_groups_of_devices_that_do_nothing_are_refused(groups, text):
    assert any(text in s for s in said(commands.Sft, {**TRAIN, "use_ray": True, "device_groups": groups}))
