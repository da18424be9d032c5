"""This file knows the families of text models: the names `--model_type` takes, by architecture of config.json."""

from __future__ import annotations

from collections.abc import Sequence

from swift.core.errors import ModelError
from swift.core.registry import nearest

FAMILIES: dict[str, tuple[str, ...]] = {
    "BloomForCausalLM": ("seggpt",),
    "CohereForCausalLM": (
        "c4ai",
        "aya",
    ),
    "DbrxForCausalLM": ("dbrx",),
    "DeepseekV2ForCausalLM": ("deepseek_v2",),
    "DeepseekV32ForCausalLM": (
        "deepseek_v3_2",
        "deepseek_v32",
    ),
    "DeepseekV3ForCausalLM": ("deepseek_v3",),
    "DeepseekV4ForCausalLM": ("deepseek_v4",),
    "Dots1ForCausalLM": ("dots1",),
    "Ernie4_5ForCausalLM": ("ernie4_5",),
    "Ernie4_5_MoeForCausalLM": ("ernie4_5_moe",),
    "GPT2LMHeadModel": ("polylm",),
    "Gemma2ForCausalLM": ("gemma2",),
    "Gemma3ForCausalLM": ("gemma3_text",),
    "GemmaForCausalLM": ("gemma",),
    "Glm4ForCausalLM": ("glm4",),
    "Glm4MoeForCausalLM": ("glm4_moe",),
    "Glm4MoeLiteForCausalLM": ("glm4_moe_lite",),
    "GlmForCausalLM": ("glm_edge",),
    "GlmMoeDsaForCausalLM": ("glm_moe_dsa",),
    "GptOssForCausalLM": ("gpt_oss",),
    "HYV3ForCausalLM": ("hy_v3",),
    "HunYuanDenseV1ForCausalLM": ("hunyuan_v1_dense",),
    "HunYuanMoEV1ForCausalLM": ("hunyuan",),
    "LlamaForCausalLM": (
        "codefuse_codellama",
        "llama",
        "openbuddy_llama",
        "yi",
    ),
    "LongcatFlashForCausalLM": ("longchat",),
    "MambaForCausalLM": ("mamba",),
    "MiniCPM3ForCausalLM": ("minicpm3",),
    "MiniMaxM2ForCausalLM": ("minimax_m2",),
    "MistralForCausalLM": (
        "mistral",
        "mistral_nemo",
        "mistral_2501",
        "zephyr",
        "wizardlm2",
        "devstral",
        "openbuddy_mistral",
    ),
    "MixtralForCausalLM": (
        "mixtral",
        "wizardlm2_moe",
        "openbuddy_mixtral",
    ),
    "NemotronHForCausalLM": ("nemotron_h",),
    "OlmoeForCausalLM": ("olmoe",),
    "Phi3ForCausalLM": (
        "phi3",
        "phi4",
    ),
    "PhiForCausalLM": ("phi2",),
    "Qwen2ForCausalLM": ("qwen2",),
    "Qwen2MoeForCausalLM": ("qwen2_moe",),
    "Qwen3ForCausalLM": ("qwen3",),
    "Qwen3MoeForCausalLM": ("qwen3_moe",),
    "Qwen3NextForCausalLM": ("qwen3_next",),
    "SeedOssForCausalLM": ("seed_oss",),
    "YoutuForCausalLM": ("youtu_llm",),
}
"""Architecture -> the families that are loaded with it; several differ in the template they speak."""


def family(wanted: str | None, architectures: Sequence[str], model_type: str) -> str | None:
    """The family of a checkpoint: the one asked for, else the only one of its architecture, else None.

    model_type: what config.json calls itself, which names a family too. Raises ModelError when the family that was
    asked for is loaded otherwise than this checkpoint.
    """
    fitting = list(dict.fromkeys(name for architecture in architectures for name in FAMILIES.get(architecture, ())))
    if wanted is None:
        return fitting[0] if len(fitting) == 1 else None
    if wanted in fitting or wanted == model_type:
        return wanted
    everything = sorted({name for names in FAMILIES.values() for name in names})
    near = nearest(wanted, everything)
    hint = f" Did you mean {near[0]}?" if near and wanted not in everything else ""
    raise ModelError(
        f"--model_type {wanted} does not fit this checkpoint, whose architecture is {', '.join(architectures)} "
        f"({', '.join(fitting) or model_type}).{hint} Drop --model_type, or pass the model it belongs to."
    )
