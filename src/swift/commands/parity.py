"""This file knows `swift parity`: the same conversations through training, inference and a server, held together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from swift.chat.messages import Conversation, Message
from swift.chat.render import Prompt, Renderer
from swift.chat.tools import has_tools
from swift.commands.begin import begin
from swift.core.errors import DataError, UsageError
from swift.data.conversations import load_conversations
from swift.data.library import HubAccess
from swift.engines.asking import NotOffered, Served, Server
from swift.engines.base import Completion, Sampling
from swift.engines.detokenizer import REPLACEMENT
from swift.engines.transformers import Transformers
from swift.hub.models import access
from swift.models.families import layout_for
from swift.models.info import ModelInfo, model_info
from swift.models.load import load_model
from swift.models.processor import load_tokenizer
from swift.models.vocabulary import with_room
from swift.options.commands import Parity
from swift.proofs.parity import (
    LIMITS,
    NO_ADAPTER,
    SINGLE,
    Comparison,
    ParityReport,
    Said,
    effect,
    same_counts,
    same_ids,
    same_logprobs,
)
from swift.proofs.parity_text import as_values, show
from swift.proofs.rendering import Words, hold_prompts
from swift.tuners.attach import load_adapters
from swift.tuners.merge import relative_errors
from swift.tuners.probe import prompt_logits

EXAMPLES = (
    (None, ("What is the capital of France?", "Paris.")),
    ("You are a helpful assistant.", ("What is two and two?", "Four.", "And three and three?", "Six.")),
    (None, ("请用一句话介绍一下你自己。", "我是一个语言模型。")),
    ("Answer in one word.", ("def add(a, b):\n    return a + b\n\nWhat does this do?", "Adds.")),
)
"""What is said where no data set is given: a system text or None, and what user and assistant say in turns."""


@dataclass
class Row:
    """One conversation on its way through everything.

    asked: without the last reply, as an answer is asked for. prompt: what our inference makes of that.
    reply: what our engine answers, likeliest tokens first to last. forward, bare: log-probabilities of these tokens by one
    pass over prompt and reply, of the model and of the model without its adapter.
    """

    number: int
    asked: Conversation
    prompt: Prompt
    reply: Completion = field(default_factory=lambda: Completion([], "", "stop", []))
    forward: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Local:
    """The model as it was trained. without: a context in which its adapter has no effect; None where there is none."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    info: ModelInfo

    @property
    def without(self) -> AbstractContextManager[Any] | None:
        """A context in which the adapter has no effect; None for a model without one, or one that cannot be taken off."""
        return self.model.disable_adapter() if isinstance(self.model, PeftModel) else None

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens written out."""
        return Words(self.tokenizer).decode(ids)

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int], begin: int) -> list[float]:
        """Log-probabilities of the tokens from `begin` on, by one pass over all of them."""
        ids_BT = torch.tensor([list(ids)], device=next(self.model.parameters()).device)
        logits_TV = self.model(input_ids=ids_BT, use_cache=False).logits[0, begin - 1 : -1].float()
        return logits_TV.log_softmax(-1).gather(-1, ids_BT[0, begin:, None])[:, 0].tolist()

    @torch.no_grad()
    def logprob_of(self, ids: Sequence[int], word: str) -> float | None:
        """The log-probability of the likeliest token behind ids that reads as `word`; None when none of 50 does."""
        ids_BT = torch.tensor([list(ids)], device=next(self.model.parameters()).device)
        values, found = self.model(input_ids=ids_BT, use_cache=False).logits[0, -1].float().log_softmax(-1).topk(50)
        pairs = zip(values.tolist(), found.tolist(), strict=True)
        return next((value for value, token in pairs if self.text([token]) == word), None)


def run(command: Parity) -> int:
    """Compare all that can be compared; 0 when everything holds, else 1."""
    command = begin(command, command.general)
    conversations = _conversations(command)
    info = model_info(command.model, access(command.general))
    tokenizer = load_tokenizer(info, command.model.new_special_tokens)
    renderer = Renderer(tokenizer, command.template, layout=layout_for(info, command.template, tokenizer))
    report = ParityReport(_named(info), command.parity.url or "what it was trained as", info.dtype)
    report.comparisons.append(_rendered(command, conversations, renderer, tokenizer, report.notes))
    rows = list(_rows(conversations, renderer, report.notes))
    model = with_room(load_model(info, command.model, command.quantization, training=False), tokenizer)
    before = prompt_logits(model) if info.adapters else None
    local = Local(load_adapters(model, info.adapters), tokenizer, renderer, info)
    _answer(command, local, rows)
    limit = LIMITS[info.dtype] if command.parity.tolerance is None else command.parity.tolerance
    report.comparisons.append(_decoded(local, rows, limit))
    if before is not None:
        moved = float(relative_errors(before, prompt_logits(local.model)).max())
        report.comparisons.append(effect([row.bare for row in rows], [row.forward for row in rows], moved))
    if command.parity.url is not None:
        report.comparisons += _served(command, local, rows, limit, report.notes)
    show(report, Console(highlight=False))
    if command.parity.report is not None:
        file = Path(command.parity.report).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(as_values(report), indent=2, ensure_ascii=False), encoding="utf-8")
    return 0 if report.holds else 1


# ---------------------------------------------------------------------------------------------------------------- local


def _named(info: ModelInfo) -> str:
    return " + ".join(path.name for path in (info.path, *info.adapters))


def _conversations(command: Parity) -> list[Conversation]:
    """The first rows of the data, else some of our own. Raises DataError when there is none."""
    data = command.data
    if not (data.dataset or data.val_dataset or data.cached_dataset or data.cached_val_dataset):
        return [_example(system, said) for system, said in EXAMPLES][: command.parity.rows]
    hub = HubAccess(command.general.use_hf, command.general.hub_token)
    loaded = load_conversations(data, hub, keep_values=False)
    return [item.conversation for item in [*loaded.train, *(loaded.val or [])][: command.parity.rows]]


def _example(system: str | None, said: Sequence[str]) -> Conversation:
    roles = ("user", "assistant")
    messages = [Message(roles[place % 2], word) for place, word in enumerate(said)]  # type: ignore[arg-type]  # of two names, both are roles
    return Conversation((*([] if system is None else [Message("system", system)]), *messages))


def _rendered(
    command: Parity, conversations: Sequence[Conversation], renderer: Renderer, tokenizer: PreTrainedTokenizerBase,
    notes: list[str],
) -> Comparison:  # fmt: skip
    """Whether inference prompts with what training has taught, in front of every reply."""
    words, what = Words(tokenizer), "prompts of inference begin the samples of training"
    compared, rethought, wrong = 0, 0, []
    for number, conversation in enumerate(conversations, 1):
        if not conversation.answered:
            continue
        try:
            sample = renderer.sample(conversation)
        except DataError as error:
            notes.append(f"row {number} cannot be learnt: {error}")
            continue
        held = hold_prompts(conversation, sample, renderer, words, command.template.loss_scale)
        compared, rethought = compared + held.compared, rethought + held.rethought
        wrong += [f"row {number}: {fault}" for fault in held.wrong]
    if not compared:
        return Comparison(what, left_out="no row has a reply to learn")
    past = f", {rethought} but for past thinking" if rethought else ""
    return Comparison(what, f"{compared - len(wrong)} of {compared} equal{past}", tuple(wrong[:1]))


def _rows(conversations: Sequence[Conversation], renderer: Renderer, notes: list[str]) -> Iterator[Row]:
    """The conversations as they are asked. Those that cannot be are noted."""
    for number, conversation in enumerate(conversations, 1):
        messages = conversation.messages
        last = max((i for i, m in enumerate(messages) if m.role not in ("assistant", "tool_call")), default=-1)
        asked = replace(conversation, messages=messages[: last + 1], rejected=None)
        try:
            yield Row(number, asked, renderer.prompt(asked))
        except DataError as error:
            notes.append(f"row {number} cannot be asked: {error}")


def _answer(command: Parity, local: Local, rows: Sequence[Row]) -> None:
    """Let our engine answer, token by token with its cache; and look at the same tokens in one pass."""
    engine = Transformers(
        local.model, local.tokenizer, max_batch_size=-1, stop_token_ids=local.renderer.stop_token_ids,
        context_length=local.info.max_length,
    )  # fmt: skip
    sampling = Sampling(max_new_tokens=command.parity.tokens, temperature=0.0, repetition_penalty=1.0, logprobs=True)
    replies = engine.generate([row.prompt for row in rows], sampling)
    for row, [reply] in zip(rows, replies, strict=True):
        row.reply = reply
        row.forward = _pass(local, row)
        without = local.without
        if without is not None:
            with without:
                row.bare = _pass(local, row)


def _pass(local: Local, row: Row) -> list[float]:
    ids = [*row.prompt.input_ids, *row.reply.token_ids]
    return local.logprobs(ids, len(row.prompt.input_ids)) if row.reply.token_ids else []


def _decoded(local: Local, rows: Sequence[Row], limit: float) -> Comparison:
    """Log-probabilities of our engine, in a batch with a cache, against one pass as in training."""
    said = [
        Said(
            row.number, [local.text([token]) for token in row.reply.token_ids], row.forward,
            [each.logprob for each in row.reply.logprobs or []],
        )
        for row in rows
    ]  # fmt: skip
    return same_logprobs("log-probabilities: training's pass and swift infer", said, limit)


# --------------------------------------------------------------------------------------------------------------- server


def _served(command: Parity, local: Local, rows: Sequence[Row], limit: float, notes: list[str]) -> Iterator[Comparison]:
    """What the server makes of the same conversations, and of the same token ids."""
    assert command.parity.url is not None, "there is a server"
    server = Server(command.parity.url, command.parity.api_key)
    try:
        model = _model_named(command, local, server)
        thinking = command.template.enable_thinking
        switches = {} if thinking is None else {"enable_thinking": thinking}
        plain = [row for row in rows if not has_tools(row.asked)]
        if len(plain) < len(rows):
            notes.append(f"{len(rows) - len(plain)} conversations with tools are not sent to the server")
        replies: dict[int, Served] = {}
        lacking = ""
        for row in plain:
            try:
                replies[row.number] = server.reply(model, _messages(row), command.parity.tokens, switches)
            except NotOffered as error:
                lacking = str(error)
        yield _same_tokens(local, plain, server, model, replies, switches)
        yield _same_replies("log-probabilities: chats on the server", local, plain, replies, limit, lacking)
        replies, lacking = {}, ""
        for row in rows:
            try:
                replies[row.number] = server.continuation(model, row.prompt.input_ids, command.parity.tokens)
            except NotOffered as error:
                lacking = str(error)
        yield _same_replies("log-probabilities: our token ids on the server", local, rows, replies, limit, lacking)
    finally:
        server.close()


def _model_named(command: Parity, local: Local, server: Server) -> str:
    """The model that is asked: as told, else the only one, else the one with the name of the adapter."""
    listed = server.models()
    wanted = command.parity.served_model_name
    if wanted is not None and wanted not in listed:
        raise UsageError(f"--served_model_name {wanted}: the server has {', '.join(listed) or 'no model'}.")
    own = [path.name for path in local.info.adapters if path.name in listed]
    name = wanted or (listed[0] if len(listed) == 1 else own[0] if own else None)
    if name is None:
        raise UsageError(f"--served_model_name is needed: the server has {', '.join(listed) or 'no model'}.")
    return name


def _messages(row: Row) -> list[dict[str, str]]:
    return [message.as_dict() for message in row.asked.messages]


def _same_tokens(
    local: Local, rows: Sequence[Row], server: Server, model: str, replies: dict[int, Served], switches: dict[str, Any]
) -> Comparison:
    """Token ids of prompts where the server tells them, else how many there are."""
    what = "token ids of prompts on the server"
    try:
        pairs = [(row.number, row.prompt.input_ids, server.token_ids(model, _messages(row), switches)) for row in rows]
        return same_ids(what, pairs, local.text)
    except NotOffered:
        counts = [
            (row.number, len(row.prompt.input_ids), count)
            for row in rows
            if row.number in replies and (count := replies[row.number].prompt_tokens) is not None
        ]
    return same_counts(what, counts) if counts else Comparison(what, left_out="the server tells neither ids nor counts")


def _same_replies(
    what: str, local: Local, rows: Sequence[Row], replies: dict[int, Served], limit: float, lacking: str
) -> Comparison:
    """Log-probabilities of the server's likeliest replies against those of one pass here."""
    if not replies:
        return Comparison(what, left_out=lacking or "nothing was asked")
    return same_logprobs(
        what, [_said(local, row, replies[row.number], limit) for row in rows if row.number in replies], limit
    )


def _said(local: Local, row: Row, reply: Served, limit: float) -> Said:
    """The tokens that both sides have chosen, and what is to be said where they part.

    Where two tokens are almost as likely, either may be chosen: that is no difference.
    """
    own = [local.text([token]) for token in row.reply.token_ids]
    pairs = zip(own, reply.tokens, strict=False)
    common = next((i for i, (a, b) in enumerate(pairs) if not _reads_as(a, b)), min(len(own), len(reply.tokens)))
    parted = ""
    if common < len(own) and common < len(reply.tokens):
        parted = _parted(local, row, common, (reply.tokens[common], reply.logprobs[common]), limit)
    return Said(row.number, own[:common], row.forward[:common], reply.logprobs[:common], parted, row.bare[:common])


def _parted(local: Local, row: Row, place: int, there: tuple[str, float], limit: float) -> str:
    """What is to be said where the server chose another token than our engine; "" when both are as likely."""
    (word, theirs), own = there, local.text(row.reply.token_ids[place : place + 1])
    ids = [*row.prompt.input_ids, *row.reply.token_ids[:place]]
    ours = local.logprob_of(ids, word)
    if ours is not None and abs(ours - theirs) <= SINGLE * limit and row.forward[place] - ours <= 2 * SINGLE * limit:
        return ""
    shown = "is not among the 50 likeliest" if ours is None else f"has {ours:.4f}"
    said = (
        f"behind {local.text(row.reply.token_ids[:place])!r} the server says {word!r} ({theirs:.4f}), which {shown} here, "
        f"where {own!r} is said ({row.forward[place]:.4f})"
    )
    without = local.without
    if without is None:
        return said
    with without:
        bare = local.logprob_of(ids, word)
    is_nearer = bare is not None and (ours is None or abs(bare - theirs) < abs(ours - theirs) / 2)
    return f"{said}; without its adapter the model has {bare:.4f} here. {NO_ADAPTER}" if is_nearer else said


def _reads_as(ours: str, theirs: str) -> bool:
    """Whether both are texts of one token. One that is a part of a character has none, and servers write what they like:
    its log-probability has to tell."""
    return ours == theirs or REPLACEMENT in ours
