"""This file knows how replies of an engine become answers in the shapes of OpenAI, whole or piece by piece."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from swift.chat.reply import read_reply
from swift.chat.tools import Tool, ToolFormat
from swift.engines.base import Completion, Delta
from swift.engines.responses import (
    ChatCompletionMessageToolCall,
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
    ChatCompletionResponseStreamChoice,
    ChatCompletionStreamResponse,
    ChatMessage,
    DeltaMessage,
    Function,
    UsageInfo,
    new_id,
    openai_logprobs,
)


@dataclass
class Answering:
    """The answer to one request in the making.

    form, tools: how calls are written, and what may be called; without a form no calls are found.
    details: whether the ids of tokens are told.
    """

    model: str
    prompt_ids: Sequence[int]
    form: ToolFormat | None = None
    tools: Sequence[Tool] = ()
    details: bool = False
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    written: dict[int, int] = field(default_factory=dict)

    def whole(self, completions: Sequence[Completion]) -> ChatCompletionResponse:
        """All replies."""
        choices = []
        for index, each in enumerate(completions):
            self.written[index] = len(each.token_ids)
            choices.append(
                ChatCompletionResponseChoice(
                    index, ChatMessage("assistant", each.text, self._calls(each.text)), each.finish_reason,
                    None if each.logprobs is None else openai_logprobs(each.logprobs),
                    list(each.token_ids) if self.details else None,
                )
            )  # fmt: skip
        prompt_ids = list(self.prompt_ids) if self.details else None
        return ChatCompletionResponse(self.model, choices, self._usage(), self.id, prompt_token_ids=prompt_ids)

    def piece(self, delta: Delta) -> ChatCompletionStreamResponse:
        """A piece of a reply; of tokens whose text is still held back, the usage does not know yet."""
        calls = None
        if delta.completion is None:
            self.written[delta.index] = self.written.get(delta.index, 0) + 1
        else:
            self.written[delta.index] = len(delta.completion.token_ids)
            calls = self._calls(delta.completion.text)
        choice = ChatCompletionResponseStreamChoice(
            delta.index, DeltaMessage("assistant", delta.text, calls),
            None if delta.completion is None else delta.completion.finish_reason,
            openai_logprobs(delta.logprobs) if delta.logprobs else None,
        )  # fmt: skip
        return ChatCompletionStreamResponse(self.model, [choice], self._usage(), self.id)

    def _usage(self) -> UsageInfo:
        read, written = len(self.prompt_ids), sum(self.written.values())
        return UsageInfo(read, written, read + written)

    def _calls(self, text: str) -> list[ChatCompletionMessageToolCall] | None:
        """The calls in a reply, which stay in its text."""
        if self.form is None:
            return None
        found = read_reply(text, self.form, self.tools).calls
        return [
            ChatCompletionMessageToolCall(
                Function(call.name, call.arguments if isinstance(call.arguments, str)
                         else json.dumps(call.arguments, ensure_ascii=False))
            )
            for call in found
        ] or None  # fmt: skip
