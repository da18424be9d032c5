"""This file knows the environment: every variable Swiftlet reads, what it means and what it is when unset.

Nothing else of Swiftlet reads `os.environ`; only `launch.py` writes it, before anything is imported.
Values are read when asked for, never at import, so that a test or a launcher can still set them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from swift.core.errors import UsageError


@dataclass(frozen=True)
class Variable:
    """An environment variable: its name, its meaning, and its value when it is not set."""

    name: str
    meaning: str
    default: str | None = None

    def get(self) -> str | None:
        """The text of the variable, or its default; an empty variable counts as unset."""
        return os.environ.get(self.name) or self.default

    def is_set(self) -> bool:
        """Whether somebody gave it a value."""
        return bool(os.environ.get(self.name))

    def integer(self) -> int | None:
        """The variable as a whole number, or None when it is unset and has no default."""
        text = self.get()
        if text is None:
            return None
        try:
            return int(text)
        except ValueError:
            raise UsageError(f"The environment variable {self.name} must be a whole number (got {text!r}).") from None

    def number(self) -> float | None:
        """The variable as a number, or None when it is unset and has no default."""
        text = self.get()
        if text is None:
            return None
        try:
            return float(text)
        except ValueError:
            raise UsageError(f"The environment variable {self.name} must be a number (got {text!r}).") from None

    def flag(self) -> bool:
        """The variable as yes or no: 1, true, yes, on are yes; 0, false, no, off are no, and so is no value at all."""
        text = (self.get() or "0").lower()
        if text in {"1", "true", "yes", "on"}:
            return True
        if text in {"0", "false", "no", "off"}:
            return False
        raise UsageError(f"The environment variable {self.name} must be true or false (got {text!r}).")


CUDA_VISIBLE_DEVICES = Variable("CUDA_VISIBLE_DEVICES", "Which GPUs are used; all by default. Read by torch.")
ASCEND_RT_VISIBLE_DEVICES = Variable(
    "ASCEND_RT_VISIBLE_DEVICES", "Which Ascend NPUs are used; all by default. Read by torch_npu."
)
MODELSCOPE_CACHE = Variable("MODELSCOPE_CACHE", "Folder of downloads and of prepared datasets; share it between nodes.")
SWIFT_CACHE_LIMIT = Variable(
    "SWIFT_CACHE_LIMIT",
    "Gigabytes that rows prepared with --load_from_cache_file may take between runs. What was not used for longest goes "
    "first; nothing goes that a run is using. 0 sets no bound.",
    "50",
)
PYTORCH_CUDA_ALLOC_CONF = Variable(
    "PYTORCH_CUDA_ALLOC_CONF", "`expandable_segments:True` reduces fragmentation of GPU memory. Read by torch."
)
NPROC_PER_NODE = Variable(
    "NPROC_PER_NODE", "Processes on this node; when set, pt, sft, rlhf and infer start under torchrun.", "1"
)
NNODES = Variable("NNODES", "Number of nodes; when set, pt, sft, rlhf and infer start under torchrun.")
NODE_RANK = Variable("NODE_RANK", "Rank of this node, given to torchrun.")
MASTER_ADDR = Variable("MASTER_ADDR", "Address of the first node, given to torchrun.")
MASTER_PORT = Variable(
    "MASTER_PORT", "Port of the first node, given to torchrun; on a single node any free one by default.", "29500"
)
LOG_LEVEL = Variable("LOG_LEVEL", "How much is logged: DEBUG, INFO, WARNING or ERROR.", "INFO")
SWIFT_DEBUG = Variable(
    "SWIFT_DEBUG", "1: the transformers engine prints the token ids it is given and those it generates."
)
VLLM_USE_V1 = Variable("VLLM_USE_V1", "Chooses between the engines of vLLM. Read by vLLM.")
SWIFT_TIMEOUT = Variable(
    "SWIFT_TIMEOUT", "Seconds to wait for a medium given as a URL; 0 or less waits for ever.", "20"
)
THINKING_BUDGET = Variable(
    "THINKING_BUDGET", "Tokens in which the model is told to think, for chat templates that read `thinking_budget`."
)
ROOT_IMAGE_DIR = Variable("ROOT_IMAGE_DIR", "Folder in which relative paths of media are looked up.")
SWIFT_SINGLE_DEVICE_MODE = Variable("SWIFT_SINGLE_DEVICE_MODE", "1: each process sees one device only.", "0")
SWIFT_PATCH_CONV3D = Variable("SWIFT_PATCH_CONV3D", "1: avoid the slow Conv3d of torch 2.9.", "0")
SWIFT_UPDATE_WEIGHTS_BUCKET_SIZE = Variable(
    "SWIFT_UPDATE_WEIGHTS_BUCKET_SIZE", "Megabytes sent at once when weights go to a rollout server.", "512"
)

INFONCE_TEMPERATURE = Variable("INFONCE_TEMPERATURE", "By what infonce divides similarities.", "0.1")
INFONCE_USE_BATCH = Variable(
    "INFONCE_USE_BATCH", "Whether the documents of all rows of the batch, on all processes, are candidates.", "true"
)
INFONCE_HARD_NEGATIVES = Variable(
    "INFONCE_HARD_NEGATIVES", "How many negatives infonce uses of each row: further ones are left out, missing ones "
    "repeated. All as they are when unset.",
)  # fmt: skip
INFONCE_MASK_FAKE_NEGATIVE = Variable(
    "INFONCE_MASK_FAKE_NEGATIVE", "Whether candidates much more similar than the positive are left out.", "false"
)
INFONCE_FAKE_NEG_MARGIN = Variable("INFONCE_FAKE_NEG_MARGIN", "How much more similar that is.", "0.1")
INFONCE_INCLUDE_QQ = Variable("INFONCE_INCLUDE_QQ", "Whether the other anchors of a batch are candidates too.", "false")
INFONCE_INCLUDE_DD = Variable(
    "INFONCE_INCLUDE_DD", "Whether documents are candidates against the positive document too.", "false"
)
LISTWISE_RERANKER_TEMPERATURE = Variable(
    "LISTWISE_RERANKER_TEMPERATURE", "By what listwise_reranker divides scores.", "1.0"
)
LISTWISE_RERANKER_MIN_GROUP_SIZE = Variable(
    "LISTWISE_RERANKER_MIN_GROUP_SIZE", "Smallest group of documents that listwise_reranker learns from.", "2"
)
MAX_POSITIVE_SAMPLES = Variable(
    "MAX_POSITIVE_SAMPLES", "Most matching documents of a row that a reranker learns from at a time.", "1"
)
MAX_NEGATIVE_SAMPLES = Variable(
    "MAX_NEGATIVE_SAMPLES", "Most other documents that are drawn for each of them, anew in every epoch.", "7"
)
GENERATIVE_RERANKER_POSITIVE_TOKEN = Variable(
    "GENERATIVE_RERANKER_POSITIVE_TOKEN",
    "The token by which a generative reranker says that a document matches.",
    "yes",
)
GENERATIVE_RERANKER_NEGATIVE_TOKEN = Variable(
    "GENERATIVE_RERANKER_NEGATIVE_TOKEN", "The token by which it says that a document does not match.", "no"
)
SWIFT_WATCHDOG = Variable(
    "SWIFT_WATCHDOG",
    "Seconds after which a step, an evaluation, a checkpoint or the preparation of rows counts as hanging: every process "
    "then shows where all its threads are, and goes on. 0 watches nothing.",
    "600",
)

MANUAL = (
    CUDA_VISIBLE_DEVICES, ASCEND_RT_VISIBLE_DEVICES, MODELSCOPE_CACHE, PYTORCH_CUDA_ALLOC_CONF, NPROC_PER_NODE,
    MASTER_PORT, MASTER_ADDR, NNODES, NODE_RANK, LOG_LEVEL, SWIFT_DEBUG, VLLM_USE_V1, SWIFT_TIMEOUT, ROOT_IMAGE_DIR,
    SWIFT_SINGLE_DEVICE_MODE, SWIFT_PATCH_CONV3D,
)  # fmt: skip
"""The variables of the manual's section on the environment, in its order."""

RANK = Variable("RANK", "Rank of this process, set by torchrun.", "0")
LOCAL_RANK = Variable("LOCAL_RANK", "Rank of this process on its node, set by torchrun.", "0")
WORLD_SIZE = Variable("WORLD_SIZE", "Number of processes, set by torchrun.", "1")
LOCAL_WORLD_SIZE = Variable("LOCAL_WORLD_SIZE", "Number of processes on this node, set by torchrun.", "1")
TORCH_ELASTIC_SHUTDOWN_TIMEOUT = Variable(
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT",
    "Seconds that torchrun leaves the processes of a run to end when one has failed or it is told to stop.",
    "25",
)
TORCHELASTIC_RUN_ID = Variable("TORCHELASTIC_RUN_ID", "Set by torchrun in the processes it starts.")
RAY_ADDRESS = Variable(
    "RAY_ADDRESS", "The Ray cluster to join, auto or host:port; without it one begins here. Read by ray."
)
LANG = Variable("LANG", "Language of help and errors: Chinese when it begins with zh.", "en")
DEVICE_TFLOPS = Variable("DEVICE_TFLOPS", "What a device can compute, for --callbacks perf_log; measured when not set.")
WANDB_PROJECT = Variable("WANDB_PROJECT", "Project of Weights & Biases that runs belong to.", "swiftlet")
SWANLAB_SENDER_EMAIL = Variable("SWANLAB_SENDER_EMAIL", "Who SwanLab's notifications by email are from.")
SWANLAB_RECEIVER_EMAIL = Variable("SWANLAB_RECEIVER_EMAIL", "Who gets SwanLab's notifications by email.")
SWANLAB_SMTP_SERVER = Variable("SWANLAB_SMTP_SERVER", "The server that sends them.", "smtp.gmail.com")
SWANLAB_SMTP_PORT = Variable("SWANLAB_SMTP_PORT", "Its port.", "587")
SGLANG_RETURN_ORIGINAL_LOGPROB = Variable(
    "SGLANG_RETURN_ORIGINAL_LOGPROB", "Whether SGLang tells log-probabilities before the temperature. Read by sglang."
)
NO_COLOR = Variable("NO_COLOR", "Any value: no colours in the terminal.")


def names() -> frozenset[str]:
    """The names of all variables that Swiftlet reads."""
    return frozenset(value.name for value in globals().values() if isinstance(value, Variable))


def knob_text(value: Any) -> str:
    """The text that a value of `--model_kwargs` is as an environment variable: true and false, JSON, or as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def inherited(**more: str) -> dict[str, str]:
    """The environment of a process that is started from here: that of this one, and more."""
    return {**os.environ, **more}


def rank() -> int:
    """The rank of this process among all; 0 when it is alone."""
    return RANK.integer() or 0


def local_rank() -> int:
    """The rank of this process on its node; 0 when it is alone."""
    return LOCAL_RANK.integer() or 0


def world_size() -> int:
    """The number of processes of this run; 1 when it is alone."""
    return WORLD_SIZE.integer() or 1
