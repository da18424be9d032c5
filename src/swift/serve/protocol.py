"""This file knows the shapes of what is asked of the server: those of OpenAI, and a few more.

What is asked is strict: a field of another type, or one that nobody knows, is refused by its name. Fields that clients
send and that change no answer (`user`, `metadata`, `store` ...) are taken and have no effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Words = Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=64)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
LARGEST_INT = 2**31 - 1
LARGEST_SEED = 2**63 - 1


class Shape(BaseModel):
    """A part of a request: nothing in it is guessed, converted or left over."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class StreamOptions(Shape):
    """What a stream carries beside its pieces."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Function(Shape):
    """A function that the model may call; its parameters are a JSON schema of an object."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _describes_an_object(self) -> Function:
        properties = (self.parameters or {}).get("properties")
        if properties is not None and not isinstance(properties, dict):
            raise ValueError("`parameters.properties` must be an object")
        if any(not isinstance(each, (dict, bool)) for each in (properties or {}).values()):
            raise ValueError("each of `parameters.properties` must be a JSON schema")
        return self


class Tool(Shape):
    """A tool of the model."""

    type: Literal["function"]
    function: Function


class NamedFunction(Shape):
    """The name of a function that has to be called."""

    name: str


class NamedTool(Shape):
    """A tool that has to be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class JsonSchema(Shape):
    """A JSON schema that a reply has to match; of an object, if it says nothing."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Shape):
    """What a reply has to look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_a_schema_where_it_needs_one(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("`json_schema` belongs to the type json_schema, which needs it")
        return self


class TemplateKwargs(Shape):
    """Variables of the chat template that a request may set."""

    enable_thinking: bool | None = None


# --------------------------------------------------------------------------------------------------------------- requests


class GenerationRequest(BaseModel):
    """What requests for a chat and for a completion have in common. None means: as the server was told."""

    model_config = Shape.model_config

    model: Name
    max_tokens: int | None = Field(None, ge=0, le=LARGEST_INT)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=LARGEST_INT)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    length_penalty: float | None = Field(None, ge=-100, le=100)
    num_beams: int | None = Field(None, ge=1, le=64)
    n: int | None = Field(None, ge=1, le=128)
    best_of: int | None = Field(None, ge=1, le=128)
    seed: int | None = Field(None, ge=-LARGEST_SEED, le=LARGEST_SEED)
    stop: str | Words | None = None
    include_stop_str_in_output: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs_regex: str | None = Field(None, min_length=1, max_length=10_000)
    return_details: bool | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _can_be_done(self) -> GenerationRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError(f"`best_of` must equal `n` ({self.n or 1}): all completions are returned")
        if self.logit_bias:
            raise ValueError("`logit_bias` is not available")
        if self.return_details and self.stream:
            raise ValueError("`return_details` is for answers in one piece: leave `stream` out")
        if self.stream_options is not None and self.stream is False:
            raise ValueError("`stream_options` needs `stream`: true")
        return self

    @property
    def stop_words(self) -> tuple[str, ...] | None:
        """The words of `stop`; None when there is no `stop`."""
        if self.stop is None:
            return None
        return tuple(word for word in ([self.stop] if isinstance(self.stop, str) else self.stop) if word)


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=LARGEST_INT)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=LARGEST_INT)
    tools: list[Tool] | None = Field(None, max_length=1000)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    images: str | list[Any] | None = None
    videos: str | list[Any] | None = None
    audios: str | list[Any] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    modalities: list[Literal["text"]] | None = None

    @property
    def must_call(self) -> bool:
        """Whether a tool has to be called."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @model_validator(mode="after")
    def _belongs_together(self) -> ChatRequest:
        if self.top_logprobs is not None and self.logprobs is False:
            raise ValueError("`top_logprobs` needs `logprobs`: true")
        if self.max_tokens == 0:
            raise ValueError("`max_tokens` must be at least 1")
        if self.must_call or self.tool_choice == "auto":
            self._check_choice()
        has_format = self.response_format is not None and self.response_format.type != "text"
        has_regex = self.structured_outputs_regex is not None
        if has_format and has_regex:
            raise ValueError("`response_format` and `structured_outputs_regex` exclude each other")
        if self.must_call and (has_format or has_regex):
            raise ValueError("a `tool_choice` that forces a call leaves no room for another format of the reply")
        return self

    def _check_choice(self) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        if not names:
            raise ValueError("`tool_choice` needs `tools`")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError("`tool_choice` names a function that is none of the `tools`")


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`: text or token ids that are continued as they are."""

    prompt: str | TokenIds | Annotated[list[str | TokenIds], Field(min_length=1, max_length=2048)]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=LARGEST_INT)
    suffix: str | None = None

    @model_validator(mode="after")
    def _can_be_continued(self) -> CompletionRequest:
        if self.suffix:
            raise ValueError("`suffix` is not available: text is continued, not filled in")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("`max_tokens` must be at least 1")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        return one_by_one(self.prompt)


class EmbeddingRequest(Shape):
    """`POST /v1/embeddings`."""

    model: Name
    input: str | TokenIds | Annotated[list[str | TokenIds], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, le=LARGEST_INT)
    user: str | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """The texts one by one, or their token ids."""
        return one_by_one(self.input)


def one_by_one(given: str | list[int] | list[str | list[int]]) -> list[str | list[int]]:
    """Texts or lists of token ids, of which there may be one or several."""
    if isinstance(given, str):
        return [given]
    texts = [each for each in given if not isinstance(each, int)]
    return texts or [[each for each in given if isinstance(each, int)]]


class Document(Shape):
    """A document to rank."""

    text: str


class RerankRequest(Shape):
    """`POST /v1/rerank`: documents in order of their relevance to a query."""

    model: Name
    query: str
    documents: list[str | Document] = Field(min_length=1, max_length=2048)
    top_n: int | None = Field(None, ge=1, le=LARGEST_INT)
    return_documents: bool | None = None
    user: str | None = None

    @property
    def texts(self) -> list[str]:
        """The texts of the documents."""
        return [each.text if isinstance(each, Document) else each for each in self.documents]


class ScoreRequest(Shape):
    """`POST /v1/score`: how well texts match: one with each of several, or pair by pair."""

    model: Name
    text_1: str | Annotated[list[str], Field(min_length=1, max_length=2048)]
    text_2: str | Annotated[list[str], Field(min_length=1, max_length=2048)]
    user: str | None = None

    @model_validator(mode="after")
    def _can_be_paired(self) -> ScoreRequest:
        first, second = self._sides()
        if len(first) not in (1, len(second)):
            raise ValueError("`text_1` must be one text, or as many as `text_2`")
        return self

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The texts that are compared."""
        first, second = self._sides()
        return [(first[0] if len(first) == 1 else first[i], each) for i, each in enumerate(second)]

    def _sides(self) -> tuple[list[str], list[str]]:
        first, second = ([side] if isinstance(side, str) else side for side in (self.text_1, self.text_2))
        return first, second


class ClassifyRequest(Shape):
    """`POST /classify`: the classes of texts, or of a conversation."""

    model: Name
    input: str | Annotated[list[str], Field(min_length=1, max_length=2048)] | None = None
    messages: list[dict[str, Any]] | None = Field(None, min_length=1, max_length=10_000)
    user: str | None = None

    @model_validator(mode="after")
    def _has_one_of_both(self) -> ClassifyRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("exactly one of `input` and `messages` is needed")
        return self
