"""This file knows how a sample is shown to people: its tokens, its text, and what of them is learnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from swift.core.labels import IGNORED


def show(
    input_ids: Sequence[int], labels: Sequence[int], decode: Callable[[list[int]], str], *, colours: bool = False
) -> str:
    """Tokens as ids and as text, and of both what is learnt; runs of other tokens as `[-100 * n]`.

    colours: mark what is learnt within [INPUT] in green, for terminals.
    """
    found = runs(labels)
    texts = [(on, decode(list(input_ids[start:end])), end - start) for start, end, on in found]
    shown = "".join(f"\033[32m{text}\033[0m" if on and colours else text for on, text, _ in texts)
    learnt = "".join(text if on else f"[-100 * {count}]" for on, text, count in texts)
    ids = [", ".join(map(str, labels[start:end])) if on else f"-100 * {end - start}" for start, end, on in found]
    return "\n".join(
        [
            f"[INPUT_IDS] {list(input_ids)}",
            f"[INPUT] {shown}",
            f"[LABELS_IDS] [{', '.join(ids)}]",
            f"[LABELS] {learnt}",
        ]
    )


def runs(labels: Sequence[int]) -> list[tuple[int, int, bool]]:
    """(start, end, whether it is learnt) of each longest run of tokens of one kind."""
    edges = [i for i in range(1, len(labels)) if (labels[i] == IGNORED) != (labels[i - 1] == IGNORED)]
    starts = [0, *edges] if labels else []
    return [(s, e, labels[s] != IGNORED) for s, e in zip(starts, [*edges, len(labels)], strict=False)]
