"""This file knows the rules between options of the engines that answer in place of our own, and of their servers."""

from __future__ import annotations

from swift.options.case import Case, Rules
from swift.options.conditions import Words
from swift.options.rules_answering import SERVED

rule = Rules()
ONLY_OURS = ("attn_impl", "experts_impl", "init_strategy", "local_repo_path")
"""How our own engine loads a model; others know nothing of it."""


@rule("infer", *SERVED)
def other_engines_load_by_themselves(case: Case) -> Words | None:
    """They read the folder of a checkpoint as it is."""
    backend = case["infer_backend"]
    if backend in (None, "transformers"):
        return None
    idle = [f"--{name}" for name in ONLY_OURS if case.asks(name)]
    if case.asks("device_map") and not case["merge_lora"]:
        idle.append("--device_map")
    if not idle:
        return None
    names = " and ".join(idle)
    return Words(
        f"{names} has no effect with --infer_backend {backend}, which loads the model by itself. Drop it.",
        f"{names} 在 --infer_backend {backend} 下不起作用：该引擎自行加载模型。请去掉它。",
    )


@rule("infer", *SERVED)
def other_engines_quantize_by_themselves(case: Case) -> Words | None:
    """--quant_method is done by transformers while it loads."""
    backend = case["infer_backend"]
    if backend in (None, "transformers") or not case.asks("quant_method"):
        return None
    own = {"vllm": "--vllm_quantization", "sglang": "--sglang_quantization"}.get(backend)
    en = f"use {own}" if own else "export a quantized model first"
    zh = f"请使用 {own}" if own else "请先导出量化模型"
    return Words(
        f"--quant_method {case['quant_method']} cannot be used together with --infer_backend {backend}: {en}.",
        f"--quant_method {case['quant_method']} 不能与 --infer_backend {backend} 同时使用：{zh}。",
    )


@rule("infer", *SERVED)
def other_engines_search_no_beams(case: Case) -> Words | None:
    """Only our own engine does."""
    backend = case["infer_backend"]
    if backend in (None, "transformers") or (case["num_beams"] or 1) == 1:
        return None
    return Words(
        f"--num_beams {case['num_beams']} needs --infer_backend transformers: {backend} searches no beams.",
        f"--num_beams {case['num_beams']} 需要 --infer_backend transformers：{backend} 不支持 beam 搜索。",
    )


@rule("infer", *SERVED)
def new_tokens_stand_in_the_checkpoint(case: Case) -> Words | None:
    """Others read the embedding as it is stored, without rows for tokens that are added afterwards."""
    backend = case["infer_backend"]
    if backend in (None, "transformers") or not case.asks("new_special_tokens") or case["merge_lora"]:
        return None
    return Words(
        f"--new_special_tokens needs --merge_lora true with --infer_backend {backend}, which reads the embedding as it is "
        "stored.",
        f"--infer_backend {backend} 按存储内容读取词嵌入，--new_special_tokens 需要 --merge_lora true。",
    )


@rule("infer", *SERVED)
def other_tasks_have_their_engines(case: Case) -> Words | None:
    """Ours and vLLM read texts; the others are asked to write."""
    backend = case["infer_backend"]
    if backend not in ("sglang", "lmdeploy") or case["task_type"] in (None, "causal_lm"):
        return None
    return Words(
        f"--task_type {case['task_type']} needs --infer_backend transformers or vllm (got {backend}).",
        f"--task_type {case['task_type']} 需要 --infer_backend 为 transformers 或 vllm（得到 {backend}）。",
    )


@rule("infer", *SERVED)
def other_tasks_need_the_async_engine(case: Case) -> Words | None:
    """vLLM answers embeddings, classes and ranks through its asynchronous engine."""
    if case["infer_backend"] != "vllm" or case["task_type"] == "causal_lm" or case["vllm_use_async_engine"]:
        return None
    return Words(
        f"--task_type {case['task_type']} needs --vllm_use_async_engine true.",
        f"--task_type {case['task_type']} 需要 --vllm_use_async_engine true。",
    )


@rule("deploy", "eval", "app")
def a_server_needs_the_async_engine(case: Case) -> Words | None:
    """The other one serves one caller."""
    if case["infer_backend"] != "vllm" or case["task_type"] != "causal_lm" or case["vllm_use_async_engine"]:
        return None
    return Words(
        f"swift {case.command} needs --vllm_use_async_engine true: it is asked by many.",
        f"swift {case.command} 需要 --vllm_use_async_engine true：服务会同时收到多个请求。",
    )


@rule(*SERVED)
def copies_need_the_async_engine(case: Case) -> Words | None:
    """Requests are shared between copies of the model by the asynchronous engine."""
    several = (case["vllm_data_parallel_size"] or 1) > 1
    if case.command == "rollout" or not several or case["vllm_use_async_engine"]:
        return None
    return Words(
        "--vllm_data_parallel_size above 1 needs --vllm_use_async_engine true.",
        "--vllm_data_parallel_size 大于 1 时需要 --vllm_use_async_engine true。",
    )


@rule("rollout")
def rollouts_have_no_pipeline(case: Case) -> Words | None:
    """Weights are sent to engines that hold all layers; several turns run asynchronously."""
    if case["vllm_pipeline_parallel_size"] > 1:
        return Words(
            "--vllm_pipeline_parallel_size must be 1 with swift rollout.",
            "swift rollout 要求 --vllm_pipeline_parallel_size 为 1。",
        )
    if case["multi_turn_scheduler"] and not case["vllm_use_async_engine"]:
        return Words(
            "--multi_turn_scheduler needs --vllm_use_async_engine true.",
            "--multi_turn_scheduler 需要 --vllm_use_async_engine true。",
        )
    return None
