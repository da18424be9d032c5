"""This file knows the knobs of particular model families: names, and what they are when nobody sets them.

A knob is set by `--model_kwargs '{"max_pixels": 1003520}'` or by the environment variable of the same name in
capitals. What it means is the family's own business; most limit the size of images and the number of frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Knobs:
    """The knobs of some families, by name, each with its default; None leaves it to the checkpoint."""

    families: tuple[str, ...]
    defaults: Mapping[str, Any]


KNOBS = (
    Knobs(
        ("qwen2_vl", "qvq", "qwen2_5_vl", "mimo_vl", "keye_vl", "keye_vl_1_5"),
        {
            "IMAGE_FACTOR": 28,
            "MIN_PIXELS": 4 * 28 * 28,
            "MAX_PIXELS": 16384 * 28 * 28,
            "MAX_RATIO": 200,
            "VIDEO_MIN_PIXELS": 128 * 28 * 28,
            "VIDEO_MAX_PIXELS": 768 * 28 * 28,
            "VIDEO_TOTAL_PIXELS": 24576 * 28 * 28,
            "FRAME_FACTOR": 2,
            "FPS": 2.0,
            "FPS_MIN_FRAMES": 4,
            "FPS_MAX_FRAMES": 768,
            "QWENVL_BBOX_FORMAT": "legacy",
        },
    ),
    Knobs(
        ("qwen2_audio",),
        {
            "SAMPLING_RATE": 16000,
        },
    ),
    Knobs(
        ("qwen2_5_omni", "qwen3_omni"),
        {
            "USE_AUDIO_IN_VIDEO": False,
            "ENABLE_AUDIO_OUTPUT": None,
        },
    ),
    Knobs(
        ("qwen3_vl",),
        {
            "SPATIAL_MERGE_SIZE": 2,
            "IMAGE_MIN_TOKEN_NUM": 4,
            "IMAGE_MAX_TOKEN_NUM": 16384,
            "VIDEO_MIN_TOKEN_NUM": 128,
            "VIDEO_MAX_TOKEN_NUM": 768,
            "MAX_RATIO": 200,
            "FRAME_FACTOR": 2,
            "FPS": 2.0,
            "FPS_MIN_FRAMES": 4,
            "FPS_MAX_FRAMES": 768,
        },
    ),
    Knobs(
        ("qwen3_vl_emb", "qwen3_vl_reranker"),
        {
            "IMAGE_MAX_TOKEN_NUM": 1800,
            "FPS": 1,
            "FPS_MAX_FRAMES": 64,
        },
    ),
    Knobs(
        ("internvl", "internvl_phi3"),
        {
            "MAX_NUM": 12,
            "INPUT_SIZE": 448,
        },
    ),
    Knobs(
        ("internvl2", "internvl2_phi3", "internvl2_5", "internvl3", "internvl3_5"),
        {
            "MAX_NUM": 12,
            "INPUT_SIZE": 448,
            "VIDEO_MAX_NUM": 1,
            "VIDEO_SEGMENTS": 8,
        },
    ),
    Knobs(
        ("minicpmv2_6", "minicpmo2_6", "minicpmv4"),
        {
            "MAX_SLICE_NUMS": 9,
            "VIDEO_MAX_SLICE_NUMS": 1,
            "MAX_NUM_FRAMES": 64,
        },
    ),
    Knobs(
        ("minicpmo2_6",),
        {
            "INIT_TTS": False,
            "INIT_AUDIO": False,
        },
    ),
    Knobs(
        ("ovis1_6", "ovis2"),
        {
            "MAX_PARTITION": 9,
        },
    ),
    Knobs(
        ("ovis2_5",),
        {
            "MIX_PIXELS": 448 * 448,
            "MAX_PIXELS": 1344 * 1792,
            "VIDEO_MAX_PIXELS": 896 * 896,
            "NUM_FRAMES": 8,
        },
    ),
    Knobs(
        ("mplug_owl3", "mplug_owl3_241101"),
        {
            "MAX_NUM_FRAMES": 16,
        },
    ),
    Knobs(
        ("xcomposer2_4khd",),
        {
            "HD_NUM": 55,
        },
    ),
    Knobs(
        ("xcomposer2_5",),
        {
            "HD_NUM": 24,
        },
    ),
    Knobs(
        ("video_cogvlm2",),
        {
            "NUM_FRAMES": 24,
        },
    ),
    Knobs(
        ("phi3_vision",),
        {
            "NUM_CROPS": 4,
        },
    ),
    Knobs(
        ("llama3_1_omni",),
        {
            "N_MELS": 128,
        },
    ),
    Knobs(
        ("video_llava",),
        {
            "NUM_FRAMES": 16,
        },
    ),
)
"""Every knob of the manual, in its order."""
