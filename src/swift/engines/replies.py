"""This file knows how replies of an engine become answers in the shapes of OpenAI, whole or piece by piece."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
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
from swift.engines.vllm_reasoning import Parts, ReasoningStream


@dataclass
class Answering:
    """The answer to one request in the making.

    form, tools: how calls are written, and what may be called; without a form no calls are found.
    details: whether the ids of tokens are told.
    splits: makes what tells thinking from words in a reply; None leaves it in the text. begun: what the prompt holds of both.
    """

    model: str
    prompt_ids: Sequence[int]
    form: ToolFormat | None = None
    tools: Sequence[Tool] = ()
    details: bool = False
    splits: Callable[[], ReasoningStream] | None = None
    begun: Parts = field(default_factory=Parts)
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    written: dict[int, int] = field(default_factory=dict)
    said: dict[int, str] = field(default_factory=dict)
    streams: dict[int, ReasoningStream] = field(default_factory=dict)

    def whole(self, completions: Sequence[Completion]) -> ChatCompletionResponse:
        """All replies."""
        choices = []
        for index, each in enumerate(completions):
            self.written[index] = len(each.token_ids)
            parts = self._parts(index, each.text, each.token_ids, is_last=True)
            message = ChatMessage("assistant", parts.said, self._calls(parts.said), parts.thought or None)
            choices.append(
                ChatCompletionResponseChoice(
                    index, message, each.finish_reason,
                    None if each.logprobs is None else openai_logprobs(each.logprobs),
                    list(each.token_ids) if self.details else None,
                )
            )  # fmt: skip
        prompt_ids = list(self.prompt_ids) if self.details else None
        return ChatCompletionResponse(self.model, choices, self._usage(), self.id, prompt_token_ids=prompt_ids)

    def piece(self, delta: Delta) -> ChatCompletionStreamResponse:
        """A piece of a reply; of tokens whose text is still held back, the usage does not know yet."""
        calls = None
        parts = self._parts(delta.index, delta.text, delta.token_ids, is_last=delta.completion is not None)
        if delta.completion is None:
            self.written[delta.index] = self.written.get(delta.index, 0) + 1
        else:
            self.written[delta.index] = len(delta.completion.token_ids)
            calls = self._calls(delta.completion.text if self.splits is None else self.said[delta.index])
        choice = ChatCompletionResponseStreamChoice(
            delta.index, DeltaMessage("assistant", parts.said, calls, parts.thought or None),
            None if delta.completion is None else delta.completion.finish_reason,
            openai_logprobs(delta.logprobs) if delta.logprobs else None,
        )  # fmt: skip
        return ChatCompletionStreamResponse(self.model, [choice], self._usage(), self.id)

    def _parts(self, index: int, text: str, token_ids: Sequence[int], *, is_last: bool) -> Parts:
        """What is thought and what is said in a piece of a reply."""
        if self.splits is None:
            return Parts(said=text)
        begun = Parts()
        if index not in self.streams:
            self.streams[index], begun = self.splits(), self.begun
        parts = self.streams[index].feed(text, token_ids, is_last=is_last)
        parts = Parts(begun.thought + parts.thought, begun.said + parts.said)
        self.said[index] = self.said.get(index, "") + parts.said
        return parts

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
