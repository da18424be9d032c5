"""This file knows the rules between options of the tuners."""

from __future__ import annotations

from swift.catalog.tuners import BUILT_IN, TUNERS
from swift.options.case import Case, Rules, exclusive
from swift.options.conditions import TRAINING, Words
from swift.options.wording import guessed

rule = Rules()
OF_LORA = ("true", "false", "gaussian", "pissa", "olora", "loftq", "lora-ga")
BEGINNINGS = {"lora": OF_LORA, "longlora": OF_LORA, "adalora": ("true", "false"), "bone": ("true", "false", "bat")}
"""--tuner_type -> what its `--init_weights` may be."""


@rule()
def a_tuner_is_known(case: Case) -> Words | None:
    """A tuner of ours, unless plugins may bring others."""
    name = case["tuner_type"]
    if name is None or name in TUNERS or case["external_plugins"]:
        return None
    guess = guessed(name, TUNERS)
    return Words(
        f"--tuner_type {name}: there is no such tuner.{guess.en} There are: {', '.join(TUNERS)}; and those that a file of "
        "--external_plugins registers.",
        f"--tuner_type {name}：没有这个 tuner。{guess.zh}可选：{', '.join(TUNERS)}，以及 --external_plugins 中注册的 tuner。",
    )


@rule(*TRAINING)
def matrices_can_begin_so(case: Case) -> Words | None:
    """Each way to begin is for some kinds of adapters."""
    name, kind = case["init_weights"], case["tuner_type"]
    if "init_weights" not in case.asked or kind not in BEGINNINGS:
        return None
    known = BEGINNINGS[kind]
    if name in known or (name.startswith("pissa") and "pissa" in known):
        return None
    listed = ", ".join(known).replace("pissa", "pissa, pissa_niter_N")
    return Words(
        f"--init_weights {name} is not for --tuner_type {kind}, which begins with one of: {listed}.",
        f"--init_weights {name} 不适用于 --tuner_type {kind}，其可选值为：{listed}。",
    )


@rule(*TRAINING)
def gradients_are_of_written_texts(case: Case) -> Words | None:
    """LoRA-GA needs the loss of a language model."""
    if case["init_weights"] != "lora-ga" or case["tuner_type"] not in BEGINNINGS or case["task_type"] == "causal_lm":
        return None
    return Words(
        f"--init_weights lora-ga takes gradients of the loss of texts that are written, and --task_type is "
        f"{case['task_type']}. Use pissa or olora.",
        f"--init_weights lora-ga 使用文本生成损失的梯度，而 --task_type 为 {case['task_type']}。请使用 pissa 或 olora。",
    )


@rule(*TRAINING)
def loftq_makes_up_for_what_is_lost(case: Case) -> Words | None:
    """It needs weights that are quantized on loading, and says nothing of the magnitudes of DoRA."""
    if case["init_weights"] != "loftq" or "loftq" not in BEGINNINGS.get(case["tuner_type"], ()):
        return None
    if not case["quant_method"]:
        return Words(
            "--init_weights loftq makes up for what quantization loses, and nothing is quantized on loading. Add "
            "--quant_method bnb --quant_bits 4, or begin with true or pissa.",
            "--init_weights loftq 用于弥补量化损失，而当前加载时没有量化。请添加 --quant_method bnb --quant_bits 4，或使用 true "
            "或 pissa。",
        )
    if case["use_dora"]:
        return exclusive(
            case,
            "init_weights",
            "use_dora",
            "DoRA's magnitudes are those of quantized weights",
            "DoRA 的幅度取自量化后的权重",
        )
    return None


@rule(*TRAINING)
def bare_parameters_have_plain_lora(case: Case) -> Words | None:
    """What acts on the input of a layer, or looks at its weight, has no place at a stack of matrices."""
    if not case["target_parameters"]:
        return None
    wrong = {
        "lora_dropout": (case["lora_dropout"] != 0, "--lora_dropout 0"),
        "use_dora": (case["use_dora"], "--use_dora false"),
        "init_weights": (case["init_weights"] not in {"true", "false", "gaussian"}, "--init_weights true"),
    }
    cure = [add for is_wrong, add in wrong.values() if is_wrong]
    if not cure:
        return None
    return Words(
        "--target_parameters adds LoRA to parameters and not to layers, so that there is no input to drop parts of, no "
        f"DoRA, and no beginning made of weights. Add {' '.join(cure)}.",
        "--target_parameters 把 LoRA 加在参数而不是层上，因此没有可 dropout 的输入，也不支持 DoRA 和由权重计算的初始化。"
        f"请添加 {' '.join(cure)}。",
    )


@rule(*TRAINING)
def ranks_shrink(case: Case) -> Words | None:
    """AdaLoRA begins with more ranks than it ends with."""
    first, last = case["adalora_init_r"], case["adalora_target_r"]
    if case["tuner_type"] != "adalora" or first > last:
        return None
    return Words(
        f"--adalora_target_r must be less than --adalora_init_r (got {last} and {first}): ranks only shrink. For ranks "
        "that stay use --tuner_type lora.",
        f"--adalora_target_r 必须小于 --adalora_init_r（得到 {last} 和 {first}）：秩只会减小。若要固定秩请使用 "
        "--tuner_type lora。",
    )


@rule()
def unsloth_makes_models_to_train(case: Case) -> Words | None:
    """What it trains is an ordinary model or adapter afterwards."""
    if case["tuner_backend"] != "unsloth" or case.command in TRAINING:
        return None
    return Words(
        f"--tuner_backend unsloth has no effect with swift {case.command}: it is for training. Remove it; what it trained "
        "is used like everything else.",
        f"--tuner_backend unsloth 在 swift {case.command} 中不起作用：它仅用于训练。请去掉它，训练结果的使用方式与其他无异。",
    )


@rule(*TRAINING)
def unsloth_loads_in_its_own_way(case: Case) -> Words | None:
    """It places weights, begins matrices and computes attention itself."""
    if case["tuner_backend"] != "unsloth":
        return None
    begins = case["init_weights"] in {"true", "false", "gaussian"}
    names = ("device_map", "packing", "padding_free", "new_special_tokens", "rope_scaling", "attn_impl", "lora_dtype")
    writes = case["task_type"] == "causal_lm"
    flag = next((name for name in names if case.asks(name)), None if begins else "init_weights")
    flag = flag if writes else "task_type"
    if flag is None:
        return None
    return Words(
        f"--{flag} {case[flag]} is nothing that --tuner_backend unsloth knows: it loads the model in its own way. Remove "
        "it, or use --tuner_backend peft.",
        f"--tuner_backend unsloth 以自己的方式加载模型，不支持 --{flag} {case[flag]}。请去掉它，或使用 --tuner_backend peft。",
    )


@rule(*TRAINING)
def a_tuner_of_ones_own_is_read_once(case: Case) -> Words | None:
    """It reads weights into a new model only."""
    if case["tuner_type"] in BUILT_IN or str(case.extra.get("load_best_model_at_end", False)).lower() != "true":
        return None
    return Words(
        f"--load_best_model_at_end cannot be used with --tuner_type {case['tuner_type']}, a tuner of your own, which reads "
        "what it saved into a new model only. Remove it; the link best points to the best checkpoint.",
        f"--load_best_model_at_end 不能与自定义 tuner（--tuner_type {case['tuner_type']}）同时使用：它只能把权重读入新模型。"
        "请去掉它；最优 checkpoint 可通过 best 链接找到。",
    )


@rule(*TRAINING)
def training_goes_on_from_one_adapter(case: Case) -> Words | None:
    """Several would have to be merged first."""
    count = len(case["adapters"] or ())
    if count < 2:
        return None
    return Words(
        f"--adapters: training goes on from one adapter (got {count}). Merge the others into the model first, with "
        "swift merge-lora.",
        f"--adapters：训练只能从一个 adapter 继续（得到 {count} 个）。请先用 swift merge-lora 合并其余的。",
    )


@rule(*TRAINING)
def boft_blocks_are_given_once(case: Case) -> Words | None:
    """Their size follows from their number."""
    return exclusive(case, "boft_block_size", "boft_block_num", "one follows from the other", "两者可以互相推出")


@rule(*TRAINING)
def llamapro_groups_are_equal(case: Case) -> Words | None:
    """Every place gets the same number of new layers."""
    blocks, groups = case["llamapro_num_new_blocks"], case["llamapro_num_groups"]
    if case["tuner_type"] != "llamapro" or not groups or blocks % groups == 0:
        return None
    return Words(
        f"--llamapro_num_new_blocks {blocks} is no multiple of --llamapro_num_groups {groups}: every group gets the same "
        "number of new layers.",
        f"--llamapro_num_new_blocks {blocks} 不是 --llamapro_num_groups {groups} 的整数倍：每组的新层数必须相同。",
    )


@rule(*TRAINING)
def shifted_attention_knows_rows(case: Case) -> Words | None:
    """Groups of tokens would reach over the borders of sequences, and the attention is one of its own."""
    if case["tuner_type"] != "longlora":
        return None
    for name in ("packing", "padding_free"):
        if case[name]:
            return Words(
                f"--tuner_type longlora and --{name} cannot be used together: attention in groups of tokens would reach "
                "over the borders of sequences. Remove one of them.",
                f"--tuner_type longlora 与 --{name} 不能同时使用：分组注意力会跨越序列边界。请去掉其中一个。",
            )
    if case["attn_impl"] in (None, "sdpa"):
        return None
    return Words(
        f"--tuner_type longlora brings an attention of its own (got --attn_impl {case['attn_impl']}). Remove --attn_impl.",
        f"--tuner_type longlora 使用自己的注意力实现（得到 --attn_impl {case['attn_impl']}）。请去掉 --attn_impl。",
    )


@rule(*TRAINING)
def lisa_changes_what_is_trained(case: Case) -> Words | None:
    """Sharded weights are divided once, for the parameters trained at the start."""
    if not case["lisa_activated_layers"]:
        return None
    for name in ("fsdp", "deepspeed"):
        if case[name]:
            return Words(
                f"--lisa_activated_layers and --{name} cannot be used together: weights and optimizer are sharded once, "
                "for the parameters trained at the start. Remove one of them.",
                f"--lisa_activated_layers 与 --{name} 不能同时使用：权重与优化器只按开始时训练的参数切分一次。请去掉其中一个。",
            )
    return None


@rule(*TRAINING)
def unsloth_knows_two_ways(case: Case) -> Words | None:
    """It trains all parameters or LoRA."""
    if case["tuner_backend"] != "unsloth" or case["tuner_type"] in {"full", "lora"}:
        return None
    return Words(
        f"--tuner_backend unsloth knows --tuner_type full and lora (got {case['tuner_type']}).",
        f"--tuner_backend unsloth 仅支持 --tuner_type full 和 lora（得到 {case['tuner_type']}）。",
    )
