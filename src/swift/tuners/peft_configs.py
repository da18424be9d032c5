"""This file knows how options become the config of a peft adapter."""

from __future__ import annotations

from peft import LoraConfig, TaskType
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from swift.core.errors import UsageError
from swift.core.logs import get_logger
from swift.tuners.request import Request
from swift.tuners.targets import modules_to_save, target_modules, token_rows

INIT_WEIGHTS: dict[str, bool | str] = {"true": True, "false": False, "gaussian": "gaussian"}
"""`--init_weights` -> what peft calls it. true: A is Kaiming uniform, B zero; gaussian: A normal, B zero; false: both
random, so that the adapter changes the model from the start."""


def lora_config(model: PreTrainedModel, request: Request) -> LoraConfig:
    """LoRA (arXiv:2106.09685): W x + scale B A x, with scale = alpha / r, or alpha / sqrt(r) with rsLoRA (2312.03732).

    With DoRA (2402.09353) the sum of W and scale B A is normalised by column and given a learnt magnitude. The rows of
    new tokens are trained beside it, unless embedding and output layer are trained whole.
    """
    options = request.options
    if options.init_weights not in INIT_WEIGHTS:
        raise UsageError(
            f"--init_weights {options.init_weights} is not available yet for LoRA; there are {', '.join(INIT_WEIGHTS)}."
        )
    saved = modules_to_save(model, options)
    targets = target_modules(model, options)
    return LoraConfig(
        task_type=peft_task(model),
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        bias=options.lora_bias,
        use_dora=options.use_dora,
        use_rslora=options.use_rslora,
        init_lora_weights=INIT_WEIGHTS[options.init_weights],  # type: ignore[arg-type]  # peft lists the names it knows
        target_modules=targets,
        trainable_token_indices=token_rows(model, targets, saved, request.run.new_token_ids),
        modules_to_save=saved or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2 stores weights transposed
        ensure_weight_tying=_saves_tied_embedding(model, saved),
    )


def peft_task(model: PreTrainedModel) -> TaskType | None:
    """What peft calls the task of a model; None for one without a head."""
    if type(model).__name__.endswith("ForSequenceClassification"):
        return TaskType.SEQ_CLS
    return TaskType.CAUSAL_LM if model.get_output_embeddings() is not None else None


def _saves_tied_embedding(model: PreTrainedModel, saved: list[str]) -> bool:
    """Whether embedding and output layer are one matrix and it is trained whole: then it stays one.

    Trained apart, the two would drift, and the merged model would be of another architecture than its base.
    """
    touched = any(name.rpartition(".")[2] in EMBEDDING_LAYER_NAMES for name in saved)
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    if touched and tied:
        get_logger().info("The embedding and the output layer of this model are one matrix; it is trained as one.")
    return touched and tied
