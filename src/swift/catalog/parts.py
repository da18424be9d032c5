"""This file knows the parts of models that are more than a language model: where each begins in the tree of modules.

A part is given by prefixes of module names, as transformers 5 names them. What lies under a prefix of `aligner` belongs
to the aligner, although a vision tower may stand above it.
"""

from __future__ import annotations

from dataclasses import dataclass

from swift.core.registry import Registry


@dataclass(frozen=True)
class Parts:
    """A module group: the prefixes of each part of a model.

    language_model: what reads and writes text. vision_tower: what sees or hears. aligner: what carries over from the one
    to the other. generator: what draws or speaks.
    """

    name: str
    language_model: tuple[str, ...]
    aligner: tuple[str, ...] = ()
    vision_tower: tuple[str, ...] = ()
    generator: tuple[str, ...] = ()

    @property
    def senses(self) -> tuple[str, ...]:
        """The prefixes of everything that is no language model."""
        return (*self.vision_tower, *self.aligner, *self.generator)


def _row(name: str, language_model: str, aligner: str = "", vision_tower: str = "", generator: str = "") -> Parts:
    """A row; prefixes are parted by spaces."""
    return Parts(name, *(tuple(words.split()) for words in (language_model, aligner, vision_tower, generator)))


_TEXT = "model.language_model lm_head"
_PROJECTOR = "model.multi_modal_projector"
# fmt: off
ROWS = (
    _row("qwen2_vl", _TEXT, "model.visual.merger", "model.visual"),
    _row("qwen3_vl", _TEXT, "model.visual.merger model.visual.deepstack_merger_list", "model.visual"),
    _row("qwen2_5_omni", "thinker.model thinker.lm_head", "thinker.audio_tower.proj thinker.visual.merger",
         "thinker.audio_tower thinker.visual", "talker token2wav"),
    _row("qwen3_omni", "thinker.model thinker.lm_head",
         "thinker.audio_tower.proj1 thinker.audio_tower.proj2 thinker.visual.merger thinker.visual.merger_list",
         "thinker.audio_tower thinker.visual", "talker code2wav"),
    _row("qwen2_audio", "language_model", "multi_modal_projector", "audio_tower"),
    _row("qwen_vl", "transformer.h", "", "transformer.visual"),
    _row("qwen_audio", "transformer.h", "", "transformer.audio"),
    _row("llava_hf", _TEXT, _PROJECTOR, "model.vision_tower"),
    _row("llava_hf_legacy", "language_model", "multi_modal_projector", "vision_tower"),
    _row("llava_next_video_hf", _TEXT, _PROJECTOR, "model.vision_tower"),
    _row("llava_llama", "model.layers", "model.mm_projector", "model.vision_tower"),
    _row("llava_mistral", "model.layers", "model.mm_projector", "model.vision_tower"),
    _row("llava_onevision1_5", _TEXT, "model.visual.merger", "model.visual"),
    _row("glm4v", _TEXT, "model.visual.merger", "model.visual"),
    _row("internvl", "language_model", "mlp1", "vision_model"),
    _row("interns1", _TEXT, _PROJECTOR, "model.vision_tower"),
    _row("minicpmv", "llm", "resampler", "vpm"),
    _row("deepseek_vl", "language_model", "aligner", "vision_model"),
    _row("deepseek_janus", "language_model", "aligner", "vision_model",
         "gen_vision_model gen_aligner gen_head gen_embed"),
    _row("deepseek_vl2", "language", "projector", "vision"),
    _row("deepseek_ocr", "model.layers", "model.projector", "model.sam_model model.vision_model"),
    _row("llama3_2_vision", _TEXT, _PROJECTOR, "model.vision_model"),
    _row("llama4", "language_model", "multi_modal_projector", "vision_model"),
    _row("llama3_1_omni", "model.layers", "model.speech_projector", "model.speech_encoder", "speech_generator"),
    _row("gemma3n", _TEXT, "model.embed_vision model.embed_audio", "model.vision_tower model.audio_tower"),
    _row("phi3_vision", "model.layers", "model.vision_embed_tokens.img_projection",
         "model.vision_embed_tokens.img_processor"),
    _row("phi4_multimodal", "model.layers",
         "model.embed_tokens_extend.image_embed.img_projection model.embed_tokens_extend.audio_embed.audio_projection",
         "model.embed_tokens_extend.image_embed.img_processor model.embed_tokens_extend.audio_embed.encoder"),
    _row("ovis", "llm", "", "visual_tokenizer vte"),
    _row("ovis2_5", "llm", "visual_tokenizer.head", "visual_tokenizer.vit vte"),
    _row("ernie_vl", "model lm_head", "model.resampler_model", "vision_model"),
    _row("keye_vl", "model lm_head", "mlp_AR", "visual"),
    _row("idefics3", "model.text_model", "model.connector", "model.vision_model"),
    _row("molmo", "model.transformer", "model.vision_backbone.image_projector", "model.vision_backbone"),
    _row("mplug_owl3", "language_model", "vision2text_model", "vision_model"),
    _row("doc_owl2", "model.layers", "model.vision2text model.hr_compressor", "model.vision_model"),
    _row("cogvlm", "model.layers", "", "model.vision"),
    _row("glm_edge_v", "model.layers", "", "model.vision"),
    _row("chatglm4v", "transformer.encoder", "", "transformer.vision"),
    _row("xcomposer", "model", "vision_proj", "vit"),
    _row("got_ocr2", "model.layers", "model.mm_projector_vary", "model.vision_tower_high"),
    _row("megrez_omni", "llm", "", "vision audio"),
    _row("midashenglm", "decoder", "audio_projector", "audio_encoder"),
    _row("step_audio2_mini", "model lm_head", "adapter", "encoder"),
    _row("step3_vl", _TEXT, "vit_large_projector", "vision_model"),
    _row("hunyuan_vl", "model", "vit.perceive", "vit"),
    _row("florence", "language_model", "", "vision_tower"),
    _row("valley", "model", "", "model.vision_tower model.qwen2vl_vision_tower"),
)
# fmt: on

PARTS: Registry[Parts] = Registry("module group", {row.name: row for row in ROWS})
"""Every module group by its name; plugins add theirs."""
