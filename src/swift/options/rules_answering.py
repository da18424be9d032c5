"""This file knows the rules between options of generation, serving, sampling and export."""

from __future__ import annotations

from swift.options.adapters import split_name
from swift.options.case import Case, Rules
from swift.options.conditions import Words
from swift.options.defaults import has_rows_to_infer
from swift.options.derivations import processes

rule = Rules()
SERVED = ("deploy", "rollout", "eval", "app")
PAGE = (
    "base_url", "api_key", "served_model_name", "studio_title", "lang", "server_name", "server_port", "share", "is_multimodal",
    "system", "max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "stop_words", "stream",
    "config", "ignore_args_error", "load_args",
)  # fmt: skip
"""Options that a chat page over a server which runs already has a use for."""


# ---------------------------------------------------------------------------------------------------------- inference


@rule("infer", *SERVED)
def beams_do_not_stream(case: Case) -> Words | None:
    """The best beam is known at the end only."""
    if (case["num_beams"] or 1) == 1 or not case["stream"]:
        return None
    return Words(
        f"--stream cannot be used together with --num_beams {case['num_beams']}: the best beam is known at the end "
        "only. Add --stream false.",
        f"--stream 不能与 --num_beams {case['num_beams']} 同时使用：最佳 beam 到最后才确定。请添加 --stream false。",
    )


@rule("infer", "sample", *SERVED)
def beams_have_no_structure(case: Case) -> Words | None:
    """The search looks at tokens that a structure does not allow."""
    if (case["num_beams"] or 1) == 1 or not case["structured_outputs_regex"]:
        return None
    return Words(
        f"--structured_outputs_regex cannot be used together with --num_beams {case['num_beams']}. Drop one of them.",
        f"--structured_outputs_regex 不能与 --num_beams {case['num_beams']} 同时使用，请去掉其中之一。",
    )


@rule("infer")
def inference_reads_what_it_is_given(case: Case) -> Words | None:
    """Rows to train on are inferred only where they are split off."""
    if not case.asks("dataset") or has_rows_to_infer(case.values):
        return None
    return Words(
        "--dataset has no effect with swift infer, which reads validation rows: give --val_dataset, or "
        "--split_dataset_ratio to infer on a part of --dataset.",
        "swift infer 只读取验证数据，--dataset 不起作用：请使用 --val_dataset，或用 --split_dataset_ratio 切分一部分。",
    )


@rule("infer")
def a_dialogue_has_one_partner(case: Case) -> Words | None:
    """Several processes cannot share one keyboard, nor one screen."""
    if processes() == 1 or (has_rows_to_infer(case.values) and not case["stream"]):
        return None
    if has_rows_to_infer(case.values):
        return Words(
            f"--stream true cannot be shared by {processes()} processes. Add --stream false.",
            f"--stream true 不支持 {processes()} 个进程。请添加 --stream false。",
        )
    return Words(
        f"A dialogue cannot be shared by {processes()} processes: give --val_dataset, or unset NPROC_PER_NODE.",
        f"对话模式不支持 {processes()} 个进程：请给出 --val_dataset，或取消 NPROC_PER_NODE。",
    )


@rule()
def merging_needs_an_adapter(case: Case) -> Words | None:
    """There is nothing to merge otherwise."""
    if not case["merge_lora"] or case["adapters"] or case["mcore_adapters"]:
        return None
    return Words(
        "--merge_lora needs --adapters, the adapter to merge.", "--merge_lora 需要 --adapters 指定要合并的 adapter。"
    )


@rule()
def merging_needs_whole_weights(case: Case) -> Words | None:
    """Quantized weights cannot take up an adapter."""
    if case.command in {"export", "merge-lora"} or not case.asks("merge_lora", "quant_method"):
        return None
    return Words(
        "--merge_lora and --quant_method cannot be used together: quantized weights cannot take up an adapter. Merge "
        "first, with swift merge-lora.",
        "--merge_lora 与 --quant_method 不能同时使用：量化权重无法合并 adapter。请先用 swift merge-lora 合并。",
    )


@rule("app")
def a_page_has_somebody_who_answers(case: Case) -> Words | None:
    """A server that runs, or a model that is served here and writes."""
    if case["base_url"] or ((case["model"] or case["adapters"]) and case["task_type"] in (None, "causal_lm")):
        return None
    if case["task_type"] not in (None, "causal_lm"):
        return Words(
            f"swift app is for models that write, and --task_type {case['task_type']} does not. See swift deploy.",
            f"swift app 用于生成文本的模型，--task_type {case['task_type']} 不生成文本。请参见 swift deploy。",
        )
    return Words(
        "swift app needs somebody who answers: --base_url, or --model or --adapters.",
        "swift app 需要回答者：请给出 --base_url，或 --model、--adapters。",
    )


# ------------------------------------------------------------------------------------------------------------- servers


@rule(*SERVED)
def a_server_can_be_made_to_ask_for_a_key(case: Case) -> Words | None:
    """Whoever wants it locked forgets the key only once."""
    if not case["require_auth"] or case["api_key"]:
        return None
    return Words(
        "--require_auth true needs --api_key, the key that clients have to show.",
        "--require_auth true 需要 --api_key，即客户端必须出示的密钥。",
    )


@rule()
def named_adapters_are_asked_for_by_clients(case: Case) -> Words | None:
    """`--adapters name=folder` gives an adapter a name that requests ask for, so there must be requests."""
    names = [name for name, _ in map(split_name, case["adapters"] or ()) if name is not None]
    if not names:
        return None
    if case.command not in SERVED:
        return Words(
            f"--adapters {names[0]}=...: names are for swift deploy, whose clients ask for them. Give the folder alone.",
            f"--adapters {names[0]}=...：名称用于 swift deploy，供客户端选择。请只给出目录。",
        )
    if case["task_type"] not in (None, "causal_lm"):
        return Words(
            f"--adapters {names[0]}=...: names are for --task_type causal_lm (got {case['task_type']}). Give the folder "
            "alone.",
            f"--adapters {names[0]}=...：名称仅用于 --task_type causal_lm（得到 {case['task_type']}）。请只给出目录。",
        )
    twice = next((name for name in names if names.count(name) > 1 or name == case["served_model_name"]), None)
    if twice is None:
        return None
    return Words(
        f"--adapters {twice}=...: this name is given twice, or is that of the model. Choose another.",
        f"--adapters {twice}=...：该名称重复，或与模型名相同。请换一个。",
    )


@rule("app")
def a_page_over_a_server_leaves_the_model_to_it(case: Case) -> Words | None:
    """The model was loaded when the server was started."""
    idle = sorted(name for name in case.asked - set(PAGE) if case[name])
    if not case["base_url"] or not idle:
        return None
    shown = ", ".join(f"--{name}" for name in idle)
    return Words(
        f"{shown}: no effect together with --base_url, whose server has its model already. Drop --base_url to serve a model "
        "here, or drop the others.",
        f"{shown}：与 --base_url 同时使用时不起作用，该服务已有模型。如需在本地部署请去掉 --base_url，否则请去掉其余参数。",
    )


# ----------------------------------------------------------------------------------------------------------- sampling


@rule("sample")
def results_go_to_one_file(case: Case) -> Words | None:
    """The folder is --output_dir."""
    name = case["output_file"]
    if not name or ("/" not in name and name.endswith(".jsonl")):
        return None
    return Words(
        f"--output_file {name} must be the name of a .jsonl file without folder; the folder is --output_dir.",
        f"--output_file {name} 必须是不含目录的 .jsonl 文件名；目录由 --output_dir 指定。",
    )


@rule("sample")
def a_part_has_a_number(case: Case) -> Words | None:
    """Parts are counted from 0."""
    parts = case["data_range"]
    if not parts or (len(parts) == 2 and parts[0] < parts[1]):
        return None
    shown = " ".join(str(part) for part in parts)
    return Words(
        f"--data_range {shown} must be two numbers, the part and the number of parts: 0 3, 1 3 or 2 3.",
        f"--data_range {shown} 必须是两个数，即第几份与总份数：如 0 3、1 3 或 2 3。",
    )


@rule("sample")
def distilling_asks_an_api(case: Case) -> Words | None:
    """A model here is sampled, a model behind an API is distilled."""
    if case["sampler_type"] != "distill" or case["sampler_engine"] == "client":
        return None
    return Words(
        f"--sampler_type distill needs --sampler_engine client (got {case['sampler_engine']}).",
        f"--sampler_type distill 需要 --sampler_engine client（得到 {case['sampler_engine']}）。",
    )


@rule("sample")
def replies_come_from_somewhere(case: Case) -> Words | None:
    """Without an engine, replies are read from an earlier run."""
    if case["sampler_engine"] != "no" or case["cache_files"]:
        return None
    return Words(
        "--sampler_engine no needs --cache_files, the replies of an earlier run.",
        "--sampler_engine no 需要 --cache_files，即上一次采样的输出。",
    )


# ------------------------------------------------------------------------------------------------------------- export


@rule("export")
def an_export_makes_one_thing(case: Case) -> Words | None:
    """Each conversion writes its own form into output_dir."""
    kinds = ("quant_method", "to_ollama", "to_cached_dataset", "to_mcore", "to_hf")
    wanted = [f"--{name}" for name in kinds if case[name]]
    if len(wanted) < 2:
        return None
    return Words(
        f"{' and '.join(wanted)} cannot be exported at once. Run swift export for each.",
        f"{' 与 '.join(wanted)} 不能一次导出。请分别运行 swift export。",
    )


@rule("export", "merge-lora")
def ollama_is_given_whole_models(case: Case) -> Words | None:
    """An adapter is merged first, which the same command can do."""
    if not case["to_ollama"] or case["merge_lora"] or not case["adapters"]:
        return None
    return Words(
        "--to_ollama writes a Modelfile for a whole model, and --adapters names an adapter. Add --merge_lora true, or "
        "pass the merged model with --model.",
        "--to_ollama 为完整模型生成 Modelfile，而 --adapters 指定了 adapter。请添加 --merge_lora true，或用 --model 指定合并后的模型。",
    )


@rule("export", "merge-lora")
def a_modelfile_leaves_weights_alone(case: Case) -> Words | None:
    """What changes weights or a config has no effect on a model that stays where it is."""
    changing = ("torch_dtype", "rope_scaling", "new_special_tokens", "max_shard_size", "device_map", "attn_impl")
    asked = [f"--{name}" for name in changing if case.asks(name)]
    if not case["to_ollama"] or case["merge_lora"] or not asked:
        return None
    return Words(
        f"{', '.join(asked)} has no effect with --to_ollama, which leaves the model as it is. Drop it.",
        f"{'、'.join(asked)} 与 --to_ollama 同时使用时不起作用：模型保持原样。请去掉。",
    )


@rule("export", "merge-lora")
def ollama_has_no_beams(case: Case) -> Words | None:
    """It samples, or takes the likeliest token."""
    if not case["to_ollama"] or (case["num_beams"] or 1) == 1:
        return None
    return Words(
        f"--num_beams {case['num_beams']} has no effect with --to_ollama: Ollama has no beam search. Drop it.",
        f"--num_beams {case['num_beams']} 与 --to_ollama 同时使用时不起作用：Ollama 没有 beam search。请去掉。",
    )


@rule("export")
def quantization_is_told_how(case: Case) -> Words | None:
    """Calibrated methods need rows, and all but fp8 a number of bits."""
    method = case["quant_method"]
    if method in {"gptq", "awq"} and not case["dataset"]:
        return Words(
            f"--quant_method {method} needs --dataset for calibration.",
            f"--quant_method {method} 需要 --dataset 用于校准。",
        )
    if method in {"gptq", "awq", "bnb"} and not case["quant_bits"]:
        return Words(f"--quant_method {method} needs --quant_bits.", f"--quant_method {method} 需要 --quant_bits。")
    return None


@rule("pt", "sft", "rlhf", "export", "merge-lora")
def a_pushed_model_has_an_id(case: Case) -> Words | None:
    """A hub needs to know where to."""
    if not case["push_to_hub"] or case["hub_model_id"]:
        return None
    return Words("--push_to_hub needs --hub_model_id.", "--push_to_hub 需要 --hub_model_id。")
