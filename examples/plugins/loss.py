"""Losses of one's own, used by `swift sft --external_plugins examples/plugins/loss.py --loss_type focal`.

Logits are [rows, tokens, words] and labels [rows, tokens], where their token stands: position t predicts token t + 1.
"""

import torch

from swift.loss import BaseLoss, loss_map

GAMMA = 2.0


def focal(outputs, labels, *, num_items_in_batch=None, **_):
    """Tokens that the model knows already count less: `(1 - p)^gamma * -log p` (Lin et al. 2017, eq. 4).

    `outputs.loss` is `-log p` of every position, 0 where nothing is learnt. Taking `num_items_in_batch` by name means
    dividing by it: the learnt tokens of the whole optimizer step.
    """
    count = (labels[:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return ((1 - torch.exp(-outputs.loss)) ** GAMMA * outputs.loss).sum() / count


class Confident(BaseLoss):
    """Cross-entropy, and a price for saying it with a flat distribution: the entropy of the learnt positions.

    Made once, with the training arguments and the trainer.
    """

    def __init__(self, args, trainer):
        super().__init__(args, trainer)
        self.price = 0.1

    def __call__(self, outputs, labels, *, num_items_in_batch=None, **_):
        """The loss of one batch."""
        learns = labels[:, 1:] != -100
        logps = outputs.logits[:, :-1][learns].float().log_softmax(-1)
        entropy = -(logps.exp() * logps).sum()
        count = learns.sum() if num_items_in_batch is None else num_items_in_batch
        return (outputs.loss.sum() + self.price * entropy) / count


loss_map["focal"] = focal
loss_map["confident"] = Confident
