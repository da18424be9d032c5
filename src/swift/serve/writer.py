"""This file knows a model that writes: how requests become prompts for its engine, and what the engine says pieces."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from swift.chat.messages import Conversation, Message
from swift.chat.render import Prompt, Renderer
from swift.chat.tools import Tool
from swift.core.errors import DataError, EngineError
from swift.core.logs import get_logger
from swift.engines.base import Delta, Request, Serving
from swift.engines.chat import fitted, response_prefix, stop_words
from swift.engines.detokenizer import decode
from swift.options.generation import GenerationOptions
from swift.options.template import TemplateOptions
from swift.serve.choices import TAGS, ChoiceReader, Piece, Reading
from swift.serve.conversations import Conversations, unrendered
from swift.serve.forcing import Forced, forced
from swift.serve.protocol import ChatRequest, CompletionRequest, NamedTool
from swift.serve.refusals import Refusal
from swift.serve.renderers import Renderers
from swift.serve.wishes import Wishes, wishes_of_chat, wishes_of_completion


@dataclass(frozen=True)
class Question:
    """A prompt, what is wanted of its replies, how they are read, and whether they are told while they grow."""

    request: Request
    reading: Reading
    streams: bool


class Writer:
    """A model that continues texts.

    engine: what asks it. tokenizer, renderers, template: how texts and conversations become prompts.
    generation, max_logprobs: what holds where a request says nothing.
    """

    def __init__(
        self, engine: Serving, tokenizer: PreTrainedTokenizerBase, renderers: Renderers, conversations: Conversations, *,
        template: TemplateOptions, generation: GenerationOptions, max_logprobs: int,
    ) -> None:  # fmt: skip
        self.engine = engine
        self.tokenizer = tokenizer
        self._renderers = renderers
        self._conversations = conversations
        self._template = template
        self._generation = generation
        self._max_logprobs = max_logprobs
        self._told: set[str] = set()

    def close(self) -> None:
        """Free what the engine holds."""
        self.engine.close()

    # ---------------------------------------------------------------------------------------------------------- asking

    def chat(self, request: ChatRequest, adapter: str | None) -> Question:
        """What a chat asks. Raises Refusal when it cannot be asked."""
        wishes = wishes_of_chat(request, self._generation, self._max_logprobs)
        thinks = None if request.chat_template_kwargs is None else request.chat_template_kwargs.enable_thinking
        renderer, parser = self._renderers.chat(thinks), self._renderers.parser
        tools = _tools(request)
        form = renderer.tool_format if tools else None
        if tools and form is None:
            self._tell_once("Calls are not found in replies: no agent template reads those of this chat template.")
        media = [each for found in (request.images, request.videos, request.audios) for each in _listed(found)]
        conversation = self._conversations.read(request.messages, tools, media)
        prompt = self._fitted(self._rendered(renderer, conversation))
        words = dict.fromkeys((*wishes.sampling.stop, *renderer.stop_words, *stop_words(prompt)))
        wishes = replace(wishes, sampling=replace(wishes.sampling, stop=tuple(words)))
        reading = Reading(
            response_prefix(prompt), (*wishes.cut, *renderer.stop_words), form, tools,
            one_call=request.parallel_tool_calls is False, tags=TAGS if parser is None else parser.tags,
        )  # fmt: skip
        if request.must_call:
            return self._forced(prompt, wishes, forced(form, tools), reading, adapter)
        if wishes.sampling.structure is not None:
            prompt, closing = self._thought(prompt, reading.tags)
            reading = replace(reading, prefix=reading.prefix + closing)
        elif parser is not None:
            reading = replace(reading, splits=partial(parser.stream, reading.prefix, self._renderers.switches(thinks)))
        return Question(Request(prompt, wishes.sampling, adapter), reading, wishes.streams)

    def completion(self, request: CompletionRequest, adapter: str | None) -> list[Question]:
        """What a completion asks, prompt by prompt. Raises Refusal when it cannot be asked."""
        wishes = wishes_of_completion(request, self._generation, self._max_logprobs)
        asked = []
        for given in request.prompts:
            prompt = self._fitted(self._raw(given))
            reading = Reading(prompt.text if request.echo else "", wishes.cut)
            asked.append(Question(Request(prompt, wishes.sampling, adapter), reading, wishes.streams))
        return asked

    def _rendered(self, renderer: Renderer, conversation: Conversation) -> Prompt:
        try:
            return renderer.prompt(conversation)
        except DataError as error:
            raise unrendered(error) from None

    def _raw(self, given: str | list[int]) -> Prompt:
        """A text or token ids as they are; a text behind what the tokenizer begins every text with."""
        if isinstance(given, str):
            return self._rendered(self._renderers.plain, Conversation((Message("user", given),)))
        largest = len(self.tokenizer)
        if any(each >= largest for each in given):
            raise Refusal(400, f"`prompt` has a token id that is not below {largest}.", param="prompt")
        text = self.tokenizer.decode(given, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str), "one sequence of ids decodes to one text"
        return Prompt(text, list(given))

    def _fitted(self, prompt: Prompt) -> Prompt:
        found = fitted(prompt, self._template, self.engine.context_length)
        if found is not None:
            return found
        limits = [self.engine.context_length - 1, self._template.max_length]
        limit = min(each for each in limits if each is not None)
        raise Refusal(
            400, f"The prompt has {len(prompt.input_ids)} tokens, and at most {limit} are taken.",
            code="context_length_exceeded",
        )  # fmt: skip

    def _forced(
        self, prompt: Prompt, wishes: Wishes, call: Forced, reading: Reading, adapter: str | None
    ) -> Question:  # fmt: skip
        """The question with its reply begun as a call. No word stops it: it may stand in an argument."""
        prompt = self._continued(self._thought(prompt, reading.tags)[0], call.prefix)
        sampling = replace(wishes.sampling, structure=call.structure, stop=())
        return Question(Request(prompt, sampling, adapter), replace(reading, cut=(), forced=call.name), wishes.streams)

    def _thought(self, prompt: Prompt, tags: tuple[str, str]) -> tuple[Prompt, str]:
        """The prompt with the block of thinking closed that it has opened, and what closes it."""
        begun = response_prefix(prompt)
        if tags[0] not in begun or tags[1] in begun:
            return prompt, ""
        closing = f"\n{tags[1]}\n\n"
        return self._continued(prompt, closing), closing

    def _continued(self, prompt: Prompt, text: str) -> Prompt:
        if not text:
            return prompt
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return Prompt(prompt.text + text, [*prompt.input_ids, *ids], prompt.extra)

    def _tell_once(self, words: str) -> None:
        if words not in self._told:
            self._told.add(words)
            get_logger().warning(words)

    # ------------------------------------------------------------------------------------------------------- answering

    def word(self, token_id: int) -> str:
        """How a token reads by itself."""
        return decode(self.tokenizer, [token_id])

    async def pieces(self, question: Question) -> AsyncGenerator[tuple[int, Piece, Delta], None]:
        """What the replies grow by: the number of the reply, what it says, and what the engine said."""
        readers = [ChoiceReader(question.reading) for _ in range(question.request.sampling.n)]
        async with aclosing(self.deltas(question)) as deltas:
            async for delta in deltas:
                yield delta.index, readers[delta.index].feed(delta), delta

    async def deltas(self, question: Question) -> AsyncGenerator[Delta, None]:
        """What the engine says, as it says it. Leaving early frees the place that the question takes.

        Raises Refusal for a question that the engine does not take.
        """
        is_begun = False
        try:
            answer: Any = self.engine.answer(question.request)
            async with aclosing(answer):
                async for delta in answer:
                    is_begun = True
                    yield delta
        except EngineError as error:
            if is_begun:
                raise
            raise Refusal(400, str(error), code="invalid_value") from None


def _tools(request: ChatRequest) -> list[Tool]:
    """The tools that the model is told of: none with `tool_choice` none, one with the name of one."""
    if request.tool_choice == "none":
        return []
    tools = [tool.model_dump(exclude_unset=True, exclude={"function": {"strict"}}) for tool in request.tools or ()]
    if isinstance(request.tool_choice, NamedTool):
        name = request.tool_choice.function.name
        return [tool for tool in tools if tool["function"]["name"] == name][:1]
    return tools


def _listed(media: Any) -> list[Any]:
    return [media] if isinstance(media, str) else list(media or ())
