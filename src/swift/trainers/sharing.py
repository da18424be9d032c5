"""This file knows how a model learns to share each row with other processes, and whether what comes out is still right.

Nothing is taken from lists of architectures: the model runs a few random tokens whole, and again in parts, and what it
says of them must be the same. A layer that mixes tokens by other means than attention gives itself away.
"""

from __future__ import annotations

import math
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from swift.chat.render import Sample
from swift.core.errors import ModelError, RunError
from swift.core.labels import IGNORED
from swift.core.logs import get_logger
from swift.data.collate import FILLING, Filled
from swift.losses.supervised import Learnt
from swift.models.evaluating import evaluating
from swift.models.flash import FLASH, FlashAttention
from swift.models.stand_in import is_here, stand_in
from swift.models.varlen import VARLEN, attend_by_sequence
from swift.parallel.attention import Attention, SharedAttention
from swift.parallel.mesh import Mesh, make_mesh, shape_for
from swift.trainers.isolation import NOT_OF_THE_MODEL, distance, embeddings, states_of, tolerance_of, trial_sequences

COUNTED = "swift_counted"
SHARED = "swift_shared"
"""Names under which transformers finds the attention of a trial, and that of a row that is shared."""


def share(model: PreTrainedModel, size: int, timeout: timedelta) -> Mesh:
    """Let `size` processes share each row of this model, and prove that they say what one process says.

    The proof is made on the model itself; on a smaller one of its kind where its weights are divided over processes.

    Its attention must be one that keeps the sequences of a row apart (`isolate`). Raises UsageError when the processes
    cannot be divided, ModelError when the model cannot be shared.
    """
    config = model.config.get_text_config()
    inner = _inner(config._attn_implementation, config.model_type)
    if not dist.is_initialized():
        raise RunError(f"--sequence_parallel_size {size} needs at least {size} processes. Set NPROC_PER_NODE={size}.")
    heads: list[int] = []
    tried = model if is_here(model) else stand_in(model)
    _set_attention(tried, COUNTED, partial(_counted, heads, inner))
    whole_TV = _run(tried, _row(tried, 2 * size), None)
    if not heads:
        raise ModelError(_refusal(size, config.model_type, "its attention is not reached through transformers"))
    mesh = make_mesh(shape_for(size, math.gcd(*heads)), dist.get_rank(), dist.get_world_size(), timeout)
    shared = SharedAttention(mesh, inner)
    _set_attention(tried, SHARED, shared)
    why = _difference(tried, mesh, whole_TV)
    if why is not None:
        raise ModelError(_refusal(size, config.model_type, why))
    _set_attention(model, SHARED, shared)
    get_logger().info(
        "--sequence_parallel_size %d: each row is shared by %d processes by heads (Ulysses) times %d in a ring; "
        "%d row%s at a time",
        size, mesh.shape.ulysses, mesh.shape.ring, mesh.rows, "" if mesh.rows == 1 else "s",
    )  # fmt: skip
    return mesh


class Evened(Dataset[Any]):
    """A set of rows, filled up to a multiple with some whose samples have one token that nobody learns, and a mark.

    So every process evaluates as many batches as any other, and no row counts twice.
    """

    def __init__(self, samples: Any, multiple: int) -> None:
        self.samples = samples
        self.length = math.ceil(len(samples) / multiple) * multiple
        first = samples[0]
        self.filling = [_filling(sample) for sample in first] if isinstance(first, list) else _filling(first)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.samples[index] if index < len(self.samples) else self.filling


def _filling(sample: Sample) -> Sample:
    return Sample([0], [IGNORED], extra={**sample.extra, FILLING: True})


def _inner(name: str | None, model_type: str) -> Attention:
    """The attention to whole rows of which a share is computed here. Raises ModelError when there is none."""
    if name == VARLEN:
        return attend_by_sequence
    if name in FLASH:
        return FlashAttention(name)
    raise ModelError(
        f"--sequence_parallel_size needs an attention that takes the borders of sequences, and {model_type} has {name}. "
        "Use --attn_impl sdpa, flash_attention_2 or flash_attention_3; where the model has only eager attention, or masks "
        "of its own, drop --sequence_parallel_size."
    )


def _set_attention(model: PreTrainedModel, name: str, attention: Any) -> None:
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, _no_mask)
    model.set_attn_implementation(name)


def _no_mask(*_: Any, **__: Any) -> None:
    """The borders of sequences say who sees whom; a mask over a long row would not fit into memory."""


def _counted(heads: list[int], inner: Attention, module: nn.Module, query_BHTD: Tensor, key_BHTD: Tensor,
             *rest: Any, **settings: Any) -> Any:  # fmt: skip
    """Attention that notes how many key-value heads it was given."""
    heads.append(key_BHTD.shape[1])
    return inner(module, query_BHTD, key_BHTD, *rest, **settings)


def _row(model: PreTrainedModel, multiple: int) -> dict[str, Any]:
    """Two sequences of random tokens and one of padding, on the device of the model."""
    sequences = trial_sequences(model)[1:]
    row = Filled(0, multiple)([Sample(ids, [IGNORED] * len(ids)) for ids in sequences])
    device = embeddings(model).device
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in row.items()
        if name not in NOT_OF_THE_MODEL
    }


@torch.no_grad()
def _run(model: PreTrainedModel, row: dict[str, Any], mesh: Mesh | None) -> Tensor:
    """What the model says of the tokens of the row, or of those that this process holds."""
    with evaluating(model):
        return states_of(model, **(row if mesh is None else mesh.fed(row)))[0]


def own_learnt(mesh: Mesh, tokens: Learnt) -> Learnt:
    """Of the learnt tokens of a row, [1, T], those whose prediction is made here, in the order of this process.

    They were found in the whole row, so a part's last token has a target as well.
    """
    own = mesh.own(tokens.learns.shape[1]).to(tokens.learns.device)
    learns_1T = tokens.learns[:, own]
    picked_N = (tokens.learns[0].cumsum(0) - 1)[own][learns_1T[0]]
    weights_N = None if tokens.weights is None else tokens.weights[picked_N]
    return Learnt(learns_1T, tokens.targets[picked_N], weights_N, tokens.sequence[picked_N], tokens.count)


def _difference(model: PreTrainedModel, mesh: Mesh, whole_TV: Tensor) -> str | None:
    """What is wrong with the logits of the processes together, in a clause; None when nothing is.

    In half precision a token may be sent to another expert by rounding, so there most tokens are looked at; the
    processes agree on the worst that any of them has seen.
    """
    try:
        part_TV = _run(model, _row(model, 2 * mesh.shape.size), mesh)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:  # the same on every process
        return f"it does not run on parts of a row ({str(error).strip().partition(chr(10))[0]})"
    expected_TV = whole_TV[mesh.own(len(whole_TV)).to(whole_TV.device)]
    is_half = whole_TV.dtype in (torch.bfloat16, torch.float16)
    apart = distance(expected_TV, part_TV) if is_half else float((expected_TV - part_TV).abs().max())
    worst = torch.tensor([apart / float(whole_TV.double().std())], device=whole_TV.device)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    if not float(worst) <= tolerance_of(whole_TV.dtype):
        return "processes that share a row do not give the logits that one process gives (tried on this model)"
    return None


def _refusal(size: int, model_type: str, why: str) -> str:
    return (
        f"--sequence_parallel_size {size} does not work with {model_type}: {why}. Drop it, and lower --max_length or "
        "--per_device_train_batch_size if memory is short."
    )
