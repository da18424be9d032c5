"""This file knows which chat template a run uses, what it does, and how it is asked to render."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from swift.catalog.layouts import LAYOUTS, Layout
from swift.chat.layouts import compile_layout, with_default_system
from swift.chat.messages import Message
from swift.chat.probing import Traits, looks_for, opening_of, probe, variables
from swift.chat.weights import parse_loss_scale
from swift.core import environment
from swift.core.errors import DataError, ModelError, UsageError
from swift.core.logs import get_logger
from swift.core.paths import is_file
from swift.options.template import TemplateOptions

logger = get_logger()

KEEP_HISTORY = {"preserve_thinking": True, "clear_thinking": False}
"""Variables by which templates are asked to keep what past replies thought; a template is given those it reads."""

BUDGET = "thinking_budget"
BUDGETS = (0, 512, 1024, 2048, 4096, 8192, 16384)
"""The budgets that Seed-OSS was taught, in tokens; what lies between two of them becomes the larger."""

_TOKEN = re.compile(r"\{\{(ID|ATTR):(\w+)\}\}")


class ChatTemplate:
    """The one template of a run, from the checkpoint or from a layout, with the default system text in it.

    text: the Jinja template.
    layout: the layout it was compiled from; None for the checkpoint's own.
    traits: what it does.
    ending: what ends a reply: the word that ends a turn in the template, or EOS where it has none.
    stop_words: all words that end a reply, `ending` first.
    opening: what the generation prompt has begun of the reply at inference.
    extra_opening: that part of it which the generation prompt lacks in training.
    looks_for: strings it may look for in what is said.
    is_wrapped: whether --system was put in front of the checkpoint's own template.
    default_system: the system text of conversations that bring none, as far as it is known.
    budget: the variable that says how long the model may think; empty where nobody does.
    reads_tools: whether it is the checkpoint's own template and looks at tools.
    """

    def __init__(self, tokenizer: Any, options: TemplateOptions, layout: Layout | None, added: tuple[str, str]) -> None:
        self._tokenizer = tokenizer
        self.layout = _chosen(tokenizer, options, layout)
        system = system_text(options.system)
        if self.layout is None:
            self.text: str = tokenizer.get_chat_template()
        else:
            self.layout = with_tokens(self.layout, tokenizer)
            self.text = _compiled(self.layout, system, tokenizer, added)
        self.default_system: str = (self.layout.default_system if self.layout else "") if system is None else system
        known = variables(self.text)
        self.reads_tools = self.layout is None and "tools" in known
        self.looks_for = looks_for(self.text)
        self.traits = self._traits(known)
        self.is_wrapped = self.layout is None and (bool(system) or (system == "" and self.traits.has_default_system))
        if self.is_wrapped:
            self.text = with_default_system(self.text, system or "", drop_empty=not self.traits.has_default_system)
            self._check_system()
        is_edited = options.template_backend == "swift"
        keeps = is_edited and parse_loss_scale(options.loss_scale).base != "last_round"
        kept = {name: value for name, value in KEEP_HISTORY.items() if name in known}
        self.budget = _thinking_budget(known)
        self._training = {**self.budget, **(kept if keeps or (is_edited and self.layout) else {})}
        switch = self.traits.switch
        # past thinking is gone by then
        self._inference: dict[str, Any] = {**self.budget, **(kept if is_edited and self.layout else {})}
        if switch and options.enable_thinking is not None:
            self._inference = {**self._inference, switch: options.enable_thinking}
        self.opening = opening_of(self._chat, self._inference)
        self.extra_opening = self._extra_opening()
        self.ending: str | None = self.traits.end_of_turn or tokenizer.eos_token
        declared = self.layout.stop_words if self.layout else ()
        ends = (self.ending, tokenizer.eos_token, *declared)
        self.stop_words: tuple[str, ...] = tuple(dict.fromkeys(word for word in ends if word))
        name = f"the layout {self.layout.name}" if self.layout else "the checkpoint's own"
        logger.info("Chat template: %s; a reply ends with %r.", name, self.ending)

    def training(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The text of a conversation to learn from. Raises DataError when the template refuses it."""
        return self._chat(messages, add_generation_prompt, self._training)

    def inference(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The text of a conversation to continue. Raises DataError when the template refuses it."""
        return self._chat(messages, add_generation_prompt, self._inference)

    def with_tools(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], *, add_generation_prompt: bool
    ) -> str:
        """The text of a conversation with tools to learn from; messages are as OpenAI writes them."""
        return self._rendered(messages, add_generation_prompt, self._training, tools)

    def continued_with_tools(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], *, add_generation_prompt: bool
    ) -> str:
        """The same to continue."""
        return self._rendered(messages, add_generation_prompt, self._inference, tools)

    @property
    def written(self) -> str:
        """A chat as the template writes it, with the words that end replies: what the assistant itself cannot say.

        Empty for layouts in which a reply is a row of messages, and says such words itself.
        """
        if self.layout is not None and self.layout.opening is not None:
            return ""
        asked, said = Message("user", "Qu1"), Message("assistant", "Qa1")
        texts = []
        for messages in ([asked, said, asked], [asked]):
            with suppress(DataError):  # a single round, or no chat at all: what can be rendered counts
                texts.append(self._chat(messages, True, self._inference))
        return " ".join([*texts, *self.stop_words])

    def _chat(self, messages: Sequence[Message], add_generation_prompt: bool, given: dict[str, Any]) -> str:
        return self._rendered([message.as_dict() for message in messages], add_generation_prompt, given)

    def _rendered(
        self,
        messages: Sequence[dict[str, Any]],
        add_generation_prompt: bool,
        given: dict[str, Any],
        tools: Sequence[dict[str, Any]] = (),
    ) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **given,
            )
        except (TemplateError, TypeError) as error:
            raise DataError(f"The chat template refuses the conversation: {error}") from None

    def _traits(self, known: set[str]) -> Traits:
        """What the template does; of a layout, what its row says."""
        tokenizer = self._tokenizer
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        special |= set(tokenizer.all_special_tokens)
        found = probe(self._chat, known, sorted(special - {tokenizer.bos_token}))
        if self.layout is None:
            return found
        ending = self.layout.suffix.replace("{{EOS}}", tokenizer.eos_token or "").strip()
        return replace(
            found,
            is_thinking=self.layout.is_thinking,
            non_thinking_prefix=self.layout.non_thinking_prefix,
            writes_prefix=False,
            has_default_system=False,
            end_of_turn=ending or None,
        )

    def _extra_opening(self) -> str:
        asked = [Message("user", "Qu1")]
        learnt, given = (self._chat(asked, True, variables) for variables in (self._training, self._inference))
        return given[len(learnt) :] if given.startswith(learnt) else ""

    def _check_system(self) -> None:
        try:
            self._chat([Message("user", "Qu1")], False, {})
        except DataError as error:
            raise UsageError(f"--system: {error} Drop --system, or choose a layout with --template.") from None


def unescape(text: str) -> str:
    r"""A text of the command line, in which `\n` is a newline."""
    return text.replace("\\n", "\n")


def system_text(given: str | None) -> str | None:
    """The value of --system: a text, or what a .txt file holds without the newlines at its end."""
    if given is None or not given.endswith(".txt"):
        return None if given is None else unescape(given)
    if not is_file(given):
        raise UsageError(f"--system {given}: there is no such file. Give a text, or the path of a .txt file.")
    return Path(given).expanduser().read_text(encoding="utf-8").rstrip("\n")


def _thinking_budget(known: set[str]) -> dict[str, int]:
    """The variable by which a template is told how long the model may think; nothing where nobody says so.

    Raises UsageError for a budget that the template does not read.
    """
    budget = environment.THINKING_BUDGET.integer()
    if budget is None:
        return {}
    if BUDGET not in known:
        raise UsageError(
            f"THINKING_BUDGET={budget} has no effect: the chat template does not read {BUDGET}. Unset the environment "
            "variable, or use the template of a checkpoint that does, without --template."
        )
    return {BUDGET: next((step for step in BUDGETS if budget <= step), BUDGETS[-1])}


def _chosen(tokenizer: Any, options: TemplateOptions, layout: Layout | None) -> Layout | None:
    """The layout to compile; None when the checkpoint's own template is used."""
    if options.template is not None:
        return LAYOUTS[options.template]
    if tokenizer.chat_template:
        return None
    if layout is None:
        raise ModelError(
            "The checkpoint has no chat template. Name a layout with --template (for instance chatml or qwen3), "
            "or train on plain text with --use_chat_template false."
        )
    return layout


def with_tokens(layout: Layout, tokenizer: Any) -> Layout:
    """The layout with the tokens that it names by their ids. Raises ModelError when the tokenizer lacks one."""

    def token(found: re.Match[str]) -> str:
        kind, name = found[1], found[2]
        if kind == "ATTR" and not isinstance(getattr(tokenizer, name, None), int):
            raise ModelError(f"The template {layout.name} needs the {name} of the tokenizer, which has none.")
        number = int(name) if kind == "ID" else getattr(tokenizer, name)
        text = tokenizer.convert_ids_to_tokens(number) if number < len(tokenizer) else None
        if text is None or tokenizer(text, add_special_tokens=False)["input_ids"] != [number]:
            raise ModelError(
                f"The template {layout.name} needs the token {number}, which this tokenizer does not read from text. "
                f"Choose another with --template."
            )
        return text

    texts = {
        field.name: _TOKEN.sub(token, value)
        for field in fields(layout)
        if isinstance(value := vars(layout)[field.name], str) and _TOKEN.search(value)
    }
    return replace(layout, **texts) if texts else layout


def _compiled(layout: Layout, system: str | None, tokenizer: Any, added: tuple[str, str]) -> str:
    if system and not layout.takes_system:
        raise UsageError(f"--system: the template {layout.name} takes no system message. Drop --system.")
    return compile_layout(
        layout,
        default_system=layout.default_system if system is None else system,
        bos=tokenizer.bos_token or "",
        eos=tokenizer.eos_token or "",
        added=added,
    )
