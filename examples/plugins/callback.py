"""A callback of one's own, used by `swift sft --external_plugins examples/plugins/callback.py --callbacks enough`.

Adds the perplexity to every log, and ends the training once it is below 1.1.
"""

import math

from swift.callbacks import TrainerCallback, callbacks_map


class Enough(TrainerCallback):
    """Made with the training arguments and the trainer."""

    def __init__(self, _args, trainer) -> None:
        self.trainer = trainer

    def on_log(self, _args, _state, control, logs=None, **_) -> None:
        """What is put into `logs` stands in the terminal, in logging.jsonl and in TensorBoard."""
        if "loss" in logs:
            logs["perplexity"] = math.exp(logs["loss"])
            control.should_training_stop |= logs["perplexity"] < 1.1


callbacks_map["enough"] = Enough
