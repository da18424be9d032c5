"""This file knows the options of the model: which one, how it is loaded, and quantization on loading."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from swift.options.conditions import equals, given
from swift.options.declare import DTypeName, Json, JsonOrName, Options, option

CLASSIFIER = equals("task_type", "seq_cls")
BNB = equals("quant_method", "bnb") & equals("quant_bits", 4)
AUTOMATIC_PLACEMENT = equals("device_map", "auto", "sequential", "balanced", "balanced_low_0")
MULTIMODAL = "models of images, video and audio"
QUANT_BITS: dict[str, tuple[int | str, ...]] = {
    "bnb": (4, 8), "hqq": (1, 2, 3, 4, 8), "eetq": (8,), "quanto": (2, 4, 8, "float8"), "fp8": (8,),
}  # fmt: skip
"""--quant_method -> the --quant_bits it has; fp8 needs none said."""


class ModelOptions(Options):
    """The model and how it is loaded."""

    model: str | None = option(None, important=True)
    """The model: a local folder with full weights, tokenizer and config.json, or an id of the hub."""
    model_type: str | None = option(None, important=True)
    """Name of the model family, which decides how the model is loaded and which template it speaks. When not given, it is
    recognised by the name of the model, its args.json and `architectures` in config.json. This is not the `model_type`
    of config.json."""
    model_revision: str | None = option(None, when=given("model"))
    """Branch, tag or commit of the model on its hub."""
    task_type: Literal["causal_lm", "seq_cls", "embedding", "reranker", "generative_reranker"] = option(
        "causal_lm", rule="what the family is for; seq_cls with num_labels; else causal_lm"
    )
    """What the model does: write text, classify, embed, or rank. `seq_cls` usually wants `--num_labels` and
    `--problem_type` too."""
    torch_dtype: DTypeName | None = option(None, important=True)
    """Floating-point type in which weights are held; read from config.json when not given."""
    attn_impl: (
        Literal["sdpa", "eager", "flash_attn", "flash_attention_2", "flash_attention_3", "flex_attention"] | None
    ) = None
    """Implementation of attention; read from config.json when not given. `flash_attn` means `flash_attention_2`.
    Which ones work depends on the model and on what is installed."""
    experts_impl: Literal["grouped_mm", "batched_mm", "eager"] | None = None
    """Implementation of the experts of a mixture-of-experts model."""
    new_special_tokens: list[str] = option([])
    """Special tokens to add to the vocabulary: the tokens themselves, or .txt files with one token per line."""
    num_labels: PositiveInt | None = option(None, when=CLASSIFIER)
    """Number of classes, or of values of a regression."""
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None = option(
        None, when=CLASSIFIER
    )
    """Kind of classification. When not given: regression for reward models and for one label, else
    single_label_classification."""
    rope_scaling: JsonOrName | None = None
    """How position encodings stretch to longer texts: a name such as linear, dynamic or yarn together with
    `--max_model_len`, or a JSON object that replaces `rope_scaling` in config.json."""
    max_model_len: PositiveInt | None = None
    """Longest text the model is said to support, in tokens; replaces `max_position_embeddings`, and with a name in
    `--rope_scaling` gives the factor to stretch by."""
    device_map: JsonOrName | None = None
    """Where the layers go, as from_pretrained takes it: auto, cpu, ..., JSON text or a JSON file. Chosen by devices
    and processes when not given."""
    max_memory: Json | None = option(None, when=AUTOMATIC_PLACEMENT)
    """How much of each device the weights may fill, e.g. `'{0: "20GB", 1: "20GB"}'`."""
    local_repo_path: str | None = None
    """Local clone of the source repository that some models need to be loaded."""
    init_strategy: (
        Literal[
            "zero", "uniform", "normal", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal"
        ]
        | None
    ) = None  # fmt: skip
    """How parameters that are not in the checkpoint are initialised, for architectures of your own."""
    adapters: list[str] = option([], important=True)
    """Folders of adapter weights to put on the model. In training, continues from these weights with a fresh
    optimizer and from the first row, unlike `--resume_from_checkpoint`."""
    model_kwargs: Json | None = None
    """Knobs of particular model families, e.g. `'{"fps_max_frames": 12}'`. The environment variable of the same name
    in capitals does the same. Give at inference what was given in training."""


class QuantizationOptions(Options):
    """How weights are quantized when they are loaded."""

    quant_method: Literal["bnb", "hqq", "eetq", "quanto", "fp8"] | None = option(None, important=True)
    """Method that quantizes the weights while they are loaded. Checkpoints that are AWQ or GPTQ already need none."""
    quant_bits: PositiveInt | Literal["float8"] | None = option(
        None, important=True, when=given("quant_method") | equals("tuner_backend", "unsloth")
    )
    """Bits per quantized weight: 4 or 8 with bnb; 1, 2, 3, 4 or 8 with hqq; 2, 4, 8 or float8 with quanto; 8 with eetq;
    none with fp8."""
    hqq_axis: NonNegativeInt | None = option(None, when=equals("quant_method", "hqq"), le=1)
    """Axis along which HQQ groups weights, 0 or 1; 1 when not given."""
    bnb_4bit_compute_dtype: DTypeName | None = option(None, when=BNB)
    """Type in which 4-bit bitsandbytes layers compute; `--torch_dtype` when not given."""
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = option("nf4", when=BNB)
    """Number format of 4-bit bitsandbytes weights."""
    bnb_4bit_use_double_quant: bool = option(True, when=BNB)
    """Whether the quantization constants of bitsandbytes are quantized themselves."""
    bnb_4bit_quant_storage: Literal["uint8", "int8", "float16", "bfloat16", "float32", "float64"] | None = option(
        None, when=BNB
    )
    """Type in which packed 4-bit bitsandbytes weights are stored; uint8 when not given."""
