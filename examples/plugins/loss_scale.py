"""Loss weights of one's own, used by `swift sft --external_plugins examples/plugins/loss_scale.py --loss_scale sums`.

Numbers weigh three times as much as words, and by `--loss_scale all+sums+short` short replies weigh half of that.
"""

from typing import ClassVar

from swift.loss_scale import ConfigLossScale, LossScale, loss_scale_map


class Sums(ConfigLossScale):
    """Patterns: a regular expression and its weight."""

    loss_scale_config: ClassVar = {r"\d+": [3.0]}


class Short(LossScale):
    """Anything else: the pieces of a reply, and a weight for each."""

    @property
    def is_binary(self) -> bool:
        """Whether every weight is 0 or 1."""
        return False

    def get_loss_scale(self, context: str, *, query: str | None = None) -> tuple[list[str], list[float]]:
        """The whole piece, by the length of what was asked."""
        return [context], [0.5 if query is not None and len(query) < 20 else 1.0]


loss_scale_map["sums"] = Sums
loss_scale_map["short"] = Short
