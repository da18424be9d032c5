"""This file knows how a model that is being trained answers meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from swift.commands.preparation import Prepared
from swift.engines.chat import Chat
from swift.engines.transformers import Transformers


@contextmanager
def answering(prepared: Prepared, model: Any) -> Iterator[Chat]:
    """The model as it is now, adapters and all, behind the template of the training.

    The engine lives as long as the weights stay as they are: it remembers what they made of the beginnings of prompts.
    """
    engine = Transformers(
        model,
        prepared.tokenizer,
        max_batch_size=prepared.command.training.per_device_eval_batch_size,
        stop_token_ids=prepared.renderer.stop_token_ids,
        context_length=prepared.info.max_length,
    )
    try:
        yield Chat(prepared.renderer, engine)
    finally:
        engine.close()
