"""This file knows a model that reads: how requests become texts for it, and what it says of them answers.

Classes, values, vectors and relevances come by the routes made for them, and classes and relevances as the content of a
chat's reply too.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.nn import functional

from swift.chat.messages import Conversation, Message
from swift.chat.render import Sample
from swift.core.errors import DataError
from swift.core.labels import IGNORED
from swift.engines.scoring import answer, class_logprobs
from swift.models.heads import Head
from swift.serve.answers import (
    AssistantMessage,
    ChatCompletion,
    Choice,
    Classified,
    ClassList,
    Embedding,
    EmbeddingList,
    Ranked,
    Ranking,
    Score,
    ScoreList,
    Usage,
)
from swift.serve.conversations import Conversations, unrendered
from swift.serve.protocol import ChatRequest, ClassifyRequest, EmbeddingRequest, RerankRequest, ScoreRequest
from swift.serve.refusals import Refusal
from swift.serve.scoring import ScoringQueue
from swift.serve.visits import Visit

RANKERS = ("reranker", "generative_reranker")


class Reads(Protocol):
    """A model with its head behind its template."""

    @property
    def head(self) -> Head:
        """What is made of the model's states."""
        ...

    @property
    def activates(self) -> bool:
        """Whether a relevance goes through a sigmoid."""
        ...

    def samples(self, conversation: Conversation) -> Sequence[tuple[Any, Sample]]:
        """The texts of a row that are read. Raises DataError."""
        ...


class Reader:
    """A model that classifies, embeds or ranks.

    classes: class -> its name. vocabulary: how many token ids there are; length: how many a text may have.
    """

    def __init__(
        self, reads: Reads, queue: ScoringQueue, conversations: Conversations, *, classes: Mapping[int, str],
        vocabulary: int, length: int | None,
    ) -> None:  # fmt: skip
        self._reads = reads
        self._queue = queue
        self._conversations = conversations
        self._classes = classes
        self._vocabulary = vocabulary
        self._length = length

    @property
    def task(self) -> str:
        """The task of the model."""
        return self._reads.head.task

    def close(self) -> None:
        """End the thread of the model."""
        self._queue.close()

    # ------------------------------------------------------------------------------------------------- texts to read

    def of_chat(self, request: ChatRequest) -> list[Sample]:
        """The conversation of a chat: of a reranker, the query and the document that answers it."""
        if self.task == "embedding":
            raise Refusal(400, "This model embeds texts: ask /v1/embeddings.", code="wrong_task")
        given = {"tools": request.tools, "response_format": request.response_format, "stream": request.stream,
                 "structured_outputs_regex": request.structured_outputs_regex, "n": (request.n or 1) > 1}  # fmt: skip
        unused = next((name for name, value in given.items() if value), None)
        if unused is not None:
            raise Refusal(400, f"`{unused}` has no place here: this model says one class or number.", param=unused)
        return [self._one(self._conversations.read(request.messages))]

    def of_embedding(self, request: EmbeddingRequest) -> list[Sample]:
        """The texts to embed."""
        self._require("embedding")
        return [self._text(each) for each in request.inputs]

    def of_ranking(self, request: RerankRequest) -> list[Sample]:
        """The query with each document."""
        return self._paired([(request.query, text) for text in request.texts])

    def of_scores(self, request: ScoreRequest) -> list[Sample]:
        """The pairs that are compared."""
        return self._paired(request.pairs)

    def of_classes(self, request: ClassifyRequest) -> list[Sample]:
        """The texts, or the conversation, to classify."""
        self._require("seq_cls")
        if request.messages is not None:
            return [self._one(self._conversations.read(request.messages))]
        texts = [request.input] if isinstance(request.input, str) else request.input or []
        return [self._text(each) for each in texts]

    def _paired(self, pairs: Sequence[tuple[str, str]]) -> list[Sample]:
        """A text for each pair; of a model that embeds, two."""
        self._require(*RANKERS, "embedding")
        if self.task == "embedding":
            return [self._text(each) for pair in pairs for each in pair]
        asked = [Conversation((Message("user", query), Message("assistant", text))) for query, text in pairs]
        return [self._one(conversation) for conversation in asked]

    def _text(self, given: str | list[int]) -> Sample:
        if isinstance(given, str):
            return self._one(Conversation((Message("user", given),)))
        if any(each >= self._vocabulary for each in given):
            raise Refusal(400, f"`input` has a token id that is not below {self._vocabulary}.", param="input")
        if self._length is not None and len(given) > self._length:
            raise Refusal(400, f"`input` has {len(given)} tokens, and at most {self._length} are taken.",
                          param="input", code="context_length_exceeded")  # fmt: skip
        return Sample(list(given), [IGNORED] * len(given))

    def _one(self, conversation: Conversation) -> Sample:
        try:
            return self._reads.samples(conversation)[0][1]
        except DataError as error:
            raise unrendered(error) from None

    def _require(self, *tasks: str) -> None:
        if self.task not in tasks:
            raise Refusal(400, f"This is for models of the task {' or '.join(tasks)}, and that of this model is "
                          f"{self.task}.", code="wrong_task")  # fmt: skip

    # ------------------------------------------------------------------------------------------------------- answers

    async def chat(self, samples: Sequence[Sample], request: ChatRequest, visit: Visit) -> ChatCompletion:
        """The class, the classes or the number that the model says, as a reply."""
        output = (await self._queue.outputs(samples))[0]
        head = self._reads.head
        said = answer(head, output, activates=self._reads.activates)
        wants = head.task == "seq_cls" and (request.logprobs or request.top_logprobs is not None)
        choice = Choice(
            index=0, message=AssistantMessage(role="assistant", content=said), finish_reason="stop",
            logprobs=class_logprobs(head, output) if wants else None,
        )  # fmt: skip
        usage = _usage(samples, written=1)
        visit.end(said, usage.prompt_tokens, 1)
        return ChatCompletion(
            id=visit.id, object="chat.completion", created=visit.created, model=request.model, choices=[choice],
            usage=usage,
        )  # fmt: skip

    async def embed(self, samples: Sequence[Sample], request: EmbeddingRequest, visit: Visit) -> EmbeddingList:
        """A vector for each text, cut to `dimensions` and brought back to its length if that is asked for."""
        outputs_NE = await self._queue.outputs(samples)
        if request.dimensions is not None:
            if request.dimensions > outputs_NE.shape[1]:
                raise Refusal(400, f"`dimensions` must be at most {outputs_NE.shape[1]}.", param="dimensions")
            outputs_NE = outputs_NE[:, : request.dimensions]
            outputs_NE = functional.normalize(outputs_NE, dim=-1) if self._reads.head.normalizes else outputs_NE
        write = WRITTEN[request.encoding_format or "float"]
        data = [
            Embedding(index=index, object="embedding", embedding=write(output_E))
            for index, output_E in enumerate(outputs_NE)
        ]
        usage = _usage(samples)
        visit.end(f"{len(data)} vectors of {outputs_NE.shape[1]} numbers", usage.prompt_tokens, 0)
        return EmbeddingList(object="list", model=request.model, data=data, usage=usage)

    async def rank(self, samples: Sequence[Sample], request: RerankRequest, visit: Visit) -> Ranking:
        """The documents, the most relevant first."""
        scores = await self._scores(samples)
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: request.top_n]
        texts = request.texts
        results = [
            Ranked(index=index, relevance_score=scores[index], document={"text": texts[index]})
            if request.return_documents
            else Ranked(index=index, relevance_score=scores[index])
            for index in order
        ]
        usage = _usage(samples)
        visit.end(scores, usage.prompt_tokens, 0)
        return Ranking(id=visit.id, model=request.model, results=results, usage=usage)

    async def score(self, samples: Sequence[Sample], request: ScoreRequest, visit: Visit) -> ScoreList:
        """How well each pair matches."""
        scores, usage = await self._scores(samples), _usage(samples)
        visit.end(scores, usage.prompt_tokens, 0)
        data = [Score(index=index, object="score", score=score) for index, score in enumerate(scores)]
        return ScoreList(id=visit.id, object="list", created=visit.created, model=request.model, data=data, usage=usage)

    async def classify(self, samples: Sequence[Sample], request: ClassifyRequest, visit: Visit) -> ClassList:
        """The classes of each text, or its values."""
        outputs_NC, usage = await self._queue.outputs(samples), _usage(samples)
        data = [self._classified(index, output_C) for index, output_C in enumerate(outputs_NC)]
        visit.end([each.label or each.values for each in data], usage.prompt_tokens, 0)
        return ClassList(id=visit.id, object="list", created=visit.created, model=request.model, data=data, usage=usage)

    async def _scores(self, samples: Sequence[Sample]) -> list[float]:
        """The relevance of each pair; of vectors, the cosine of their angle."""
        outputs = await self._queue.outputs(samples)
        if self.task == "embedding":
            return functional.cosine_similarity(outputs[0::2], outputs[1::2], dim=-1).tolist()
        return [float(answer(self._reads.head, output, activates=self._reads.activates)) for output in outputs]

    def _classified(self, index: int, output_C: Tensor) -> Classified:
        head = self._reads.head
        if head.problem == "regression":
            values = output_C.flatten().tolist()
            return Classified(index=index, label=None, probs=[], num_classes=head.num_labels, values=values)
        said = answer(head, output_C, activates=self._reads.activates)
        is_single = head.problem == "single_label_classification"
        probs_C = output_C.softmax(-1) if is_single else output_C.sigmoid()
        label = self._named(said) if is_single else [self._named(each) for each in said]
        return Classified(index=index, label=label, probs=probs_C.tolist(), num_classes=head.num_labels)

    def _named(self, number: int) -> str:
        return self._classes.get(number, f"LABEL_{number}")


def _usage(samples: Sequence[Sample], written: int = 0) -> Usage:
    read = sum(len(sample) for sample in samples)
    return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


def _base64(vector_E: Tensor) -> str:
    """The numbers as float32 in little endian, in base64."""
    return base64.b64encode(vector_E.numpy().astype("<f4").tobytes()).decode()


def _numbers(vector_E: Tensor) -> list[float]:
    return vector_E.tolist()


WRITTEN: dict[str, Callable[[Tensor], list[float] | str]] = {"float": _numbers, "base64": _base64}
"""`encoding_format` -> how a vector is written."""
