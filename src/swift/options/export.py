"""This file knows the options of export: merging, quantizing, converting, caching, pushing."""

from typing import Literal

from pydantic import PositiveInt

from swift.options.conditions import command, equals, given
from swift.options.declare import DTypeName, Options, option

CALIBRATED = equals("quant_method", "gptq", "awq")
WRITES_WEIGHTS = command("export", "merge-lora")
MEGATRON = "conversion to and from Megatron"


class MergeOptions(Options):
    """Merging adapters and writing weights."""

    merge_lora: bool = option(False, important=True)
    """Whether the adapter is merged into the model: for lora, longlora and llamapro."""
    safe_serialization: bool = option(True, when=WRITES_WEIGHTS)
    """Whether weights are written as safetensors."""
    max_shard_size: str = option("5GB", when=WRITES_WEIGHTS)
    """Largest size of one file of weights."""


class ExportOptions(Options):
    """Conversions of a trained model."""

    output_dir: str | None = option(None, important=True, rule="a path with a fitting suffix")
    """Folder of the result."""
    exist_ok: bool = False
    """Whether output_dir may exist already and be overwritten."""
    quant_method: Literal["gptq", "awq", "bnb", "fp8"] | None = option(None, important=True, later="quantizing a model")
    """Method that quantizes the model. gptq and awq need `--dataset` for calibration."""
    quant_n_samples: PositiveInt = option(256, when=CALIBRATED)
    """Number of rows gptq and awq are calibrated on."""
    quant_batch_size: PositiveInt = option(1, when=CALIBRATED)
    """Rows per calibration batch."""
    group_size: PositiveInt = option(128, when=CALIBRATED)
    """Number of weights that share one quantization scale."""
    to_cached_dataset: bool = False
    """Whether the data is tokenized now and exported, for `--cached_dataset`. Validation rows come from
    `--split_dataset_ratio` or `--val_dataset`. Give the options of the template as in the run to come."""
    template_mode: Literal["train", "rlhf", "kto"] = option("train", when=given("to_cached_dataset"))
    """What the cached data is for: train for pt and sft, kto for KTO, rlhf for the other preference methods. PPO,
    GRPO and GKD cannot use cached data."""
    to_ollama: bool = False
    """Whether a Modelfile for Ollama is written, whose prompts are shown to be those of the model. With `--merge_lora`
    it lies in the folder of the merged model."""
    to_mcore: bool = option(False, important=True, later=MEGATRON)
    """Whether weights are converted from Hugging Face's form to Megatron's."""
    to_hf: bool = option(False, later=MEGATRON)
    """Whether weights are converted from Megatron's form to Hugging Face's."""
    mcore_model: str | None = option(None, later=MEGATRON)
    """Folder of a model in Megatron's form."""
    mcore_adapters: list[str] = option([], later=MEGATRON)
    """Folders of adapters in Megatron's form."""
    thread_count: PositiveInt | None = option(None, when=given("to_mcore"), rule="largest shard under 10GB")
    """Number of files a model in Megatron's form is written to."""
    offload_bridge: bool = option(False, important=True, later=MEGATRON)
    """Whether weights that Megatron exports for vLLM are kept in main memory, to spare the GPU."""
    test_convert_precision: bool = option(False, important=True, when=given("to_mcore", "to_hf"), later=MEGATRON)
    """Whether the logits before and after a Megatron conversion are compared."""
    test_convert_dtype: DTypeName = option("float32", when=given("test_convert_precision"))
    """Type in which that comparison computes."""
    push_to_hub: bool = option(False, important=True)
    """Whether the result is pushed to the hub."""
    hub_model_id: str | None = option(None, when=given("push_to_hub"))
    """Id of the repository on the hub."""
    hub_private_repo: bool = option(False, when=given("push_to_hub"))
    """Whether the repository on the hub is private."""
    commit_message: str = option("update files", when=given("push_to_hub"))
    """Message of the commit on the hub."""
