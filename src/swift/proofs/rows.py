"""This file knows what is proven of the rows of a run: of the samples as numbers, and of some token by token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy

from swift.chat.render import Renderer
from swift.chat.tools import has_tools
from swift.options.template import TemplateOptions
from swift.proofs import rendering
from swift.proofs.duplicates import overlap, prove_apart, prove_unique, repetitions
from swift.proofs.measured import FIRST, Measured
from swift.proofs.rendering import Words
from swift.proofs.report import DatasetFacts, LeftOut, Proof, ShownRow, counted, share

TOLERATED = 0.01
"""Share of the rows that may be left out as broken, or have next to nothing to learn, before a proof fails."""
FEWEST_LEARNT = 2
"""Learnt tokens a sample should have at least: a word and the end of the reply."""
SMALLEST_SHARE = 0.01
"""Share of its tokens that should be learnt of a sample."""
EXAMPLES = 3


@dataclass
class Tally:
    """One claim held against many rows: how many were looked at, and what was wrong with which."""

    claim: str
    noun: str
    advice: str
    looked_at: int = 0
    wrong: list[str] = field(default_factory=list)
    remark: str = ""

    def add(self, place: str, problems: Sequence[str], looked_at: int = 1) -> None:
        """One more row, or several things in it."""
        self.looked_at += looked_at
        self.wrong += [f"{place}: {problem}" for problem in problems]

    def proof(self) -> Proof:
        """What has become of the claim. With nothing to look at it holds."""
        found = f"{counted(self.looked_at, self.noun)} looked at"
        found += f", {len(self.wrong):,} wrong" if self.wrong else ""
        return Proof(self.claim, not self.wrong, found + self.remark, self.advice, tuple(self.wrong[:EXAMPLES]))


# --------------------------------------------------------------------------------------------------------------- facts


def shown_rows(measured: Measured, words: Words) -> list[ShownRow]:
    """The first rows of every data set."""
    rows, seen = [], dict[str, set[int]]()
    for witness in measured.witnesses:
        source = witness.source
        first = seen.setdefault(source, set())
        if witness.row not in first and len(first) == FIRST:
            continue
        first.add(witness.row)
        part = "" if witness.part.name == "sample" else f" ({witness.part.name})"
        learnt, parts = witness.sample.learnt, rendering.stretches(witness.sample, words)
        rows.append(ShownRow(source + part, witness.place, len(witness.sample), learnt, parts))
    return rows


def dataset_facts(measured: Measured) -> list[DatasetFacts]:
    """What each data set brings to training and to validation; a sample counts as often as it is used."""
    numbers, facts = measured.numbers, []
    for split, order in (("train", measured.train), ("validation", measured.val)):
        sums: dict[str, list[int]] = {}
        for source in dict.fromkeys(numbers.sources[order].tolist()):
            own = order[numbers.sources[order] == source]
            row = sums.setdefault(measured.names[source], [0, 0, 0])
            found = (len(own), int(numbers.lengths[own].sum()), int(numbers.learnt[own].sum()))
            row[:] = [total + more for total, more in zip(row, found, strict=True)]
        facts += [DatasetFacts(name, split, *row) for name, row in sums.items()]
    return facts


def left_out(measured: Measured) -> list[LeftOut]:
    """The rows that are not used, by cause, the most frequent first."""
    dropped = sorted(measured.report.dropped.items(), key=lambda entry: -entry[1][0])
    return [LeftOut(count, cause, str(first)) for cause, (count, first) in dropped]


# -------------------------------------------------------------------------------------------------------------- proofs


def prove_numbers(
    measured: Measured, template: TemplateOptions, *, learns: bool, has_stops: bool, reads: bool = False
) -> list[Proof]:
    """What is proven of every sample, by its numbers.

    learns: whether tokens of samples are learnt. has_stops: whether there are tokens that end a reply. reads: whether
    samples are read for their labels, and not prompts.
    """
    train, val = numpy.unique(measured.train).tolist(), numpy.unique(measured.val).tolist()
    digests = measured.numbers.digests
    proofs = [_prove_readable(measured, template)]
    if learns:
        proofs.append(_prove_taught(measured, [*train, *val]))
        proofs += [_prove_ended(measured, [*train, *val], template)] if has_stops else []
    if learns or reads:
        pairs = repetitions((sample, digests[sample]) for sample in train)
        proofs.append(prove_unique(pairs, len(train), measured.place))
        if val:
            known = overlap(((s, digests[s]) for s in train), ((s, digests[s]) for s in val))
            proofs.append(prove_apart(known, len(val), measured.place))
    return proofs


def prove_read(measured: Measured, words: Words) -> list[Proof]:
    """What is proven of rows that are read: that no text is empty, and that all end alike.

    The last token is what most of these tasks look at: where it differs, cutting or the template has taken it.
    """
    texts = Tally(
        "every text has something to read", "text",
        "Look whether the texts are where they belong: what the template adds is all that is there.",
    )  # fmt: skip
    ends = Tally(
        "all texts end with the same token", "text",
        "The task looks at the last token. Rows that end with a reply and rows that do not end differently: give them "
        "all one form.",
    )  # fmt: skip
    lasts = Counter(witness.sample.input_ids[-1] for witness in measured.witnesses if witness.sample.input_ids)
    usual = lasts.most_common(1)[0][0] if lasts else None
    for witness in measured.witnesses:
        said = any(message.content.strip() for message in witness.part.conversation.messages)
        texts.add(witness.place, [] if said else [f"the {witness.part.name} is empty"])
        last = witness.sample.input_ids[-1:]
        is_usual = not last or last[0] == usual
        ends.add(witness.place, [] if is_usual else [f"the {witness.part.name} ends with {words.decode(last)!r}"])
    return [texts.proof(), ends.proof()]


def prove_witnesses(measured: Measured, renderer: Renderer, words: Words, template: TemplateOptions) -> list[Proof]:
    """What is proven of the rows that were kept whole, token by token."""
    prompts = Tally(
        "the model is asked as it is taught", "prompt",
        "What stands before a reply in training is not what stands there when the model is used. Choose another "
        "--template, or --loss_scale last_round.",
    )  # fmt: skip
    said = Tally(
        "what is learnt is what the assistant said", "row",
        "The template rewrites replies, or its marks cannot be told from them. Choose a named layout with --template.",
    )  # fmt: skip
    stops = Tally(
        "every learnt reply ends with a stop token", "row",
        "A model that never learns to stop goes on for ever. Choose a --template that ends replies, or a tokenizer "
        "that has the token which ends them.",
    )  # fmt: skip
    template_text = Tally(
        "the text is that of apply_chat_template", "row",
        "Other programs would render these rows otherwise. Choose a named layout with --template.",
    )  # fmt: skip
    control = Tally(
        "special tokens that people typed stay text", "row",
        "Take them out of the rows: they end turns and begin others wherever they stand.",
    )  # fmt: skip
    rethought = with_tools = 0
    for witness in measured.witnesses:
        conversation, sample = witness.part.conversation, witness.sample
        if rendering.typed_specials(conversation, words):
            control.add(witness.place, rendering.typed_control(conversation, sample, words, renderer.sample))
        if not witness.part.learns:
            continue
        stops.add(witness.place, rendering.unstopped(sample, words, renderer.stop_words, template.loss_scale))
        held = rendering.hold_prompts(conversation, sample, renderer, words, template.loss_scale)
        rethought += held.rethought
        prompts.add(witness.place, held.wrong, held.compared)
        if has_tools(conversation):
            with_tools += 1
            continue
        said.add(
            witness.place,
            rendering.wrongly_said(conversation, sample, words, renderer.stop_words, template.loss_scale),
        )
        template_text.add(witness.place, rendering.untemplated(conversation, sample, words, renderer.chat_template))
    prompts.remark = f"; {rethought} differ in past thinking alone" if rethought else ""
    said.remark = template_text.remark = f"; {with_tools} rows with tools not compared" if with_tools else ""
    return [tally.proof() for tally in (prompts, said, stops, template_text, control)]


def _prove_readable(measured: Measured, template: TemplateOptions) -> Proof:
    """That hardly a row is broken. Rows that are too long are left out on purpose and do not count here."""
    long = f"longer than --max_length {template.max_length}"
    broken = {cause: entry for cause, entry in measured.report.dropped.items() if cause != long}
    count = sum(number for number, _ in broken.values())
    ordered = sorted(broken.values(), key=lambda entry: -entry[0])
    return Proof(
        claim="rows can be read and rendered",
        holds=count <= TOLERATED * measured.report.read,
        found=f"{count:,} of {counted(measured.report.read, 'row')} cannot ({share(count, measured.report.read)})",
        advice="Correct them, or say with --columns what their columns mean.",
        examples=tuple(f"{number:,} like {first}" for number, first in ordered[:EXAMPLES]),
    )


def _prove_taught(measured: Measured, samples: Sequence[int]) -> Proof:
    """That samples have something to learn."""
    lengths, learnt = measured.numbers.lengths[samples], measured.numbers.learnt[samples]
    is_poor = (learnt < numpy.minimum(FEWEST_LEARNT, lengths - 1)) | (learnt < SMALLEST_SHARE * lengths)
    poor = numpy.flatnonzero(is_poor).tolist()
    return Proof(
        claim="every sample has something to learn",
        holds=len(poor) <= TOLERATED * len(samples),
        found=f"{len(poor):,} of {counted(len(samples), 'sample')} ({share(len(poor), len(samples))}) have fewer than "
        f"{FEWEST_LEARNT} learnt tokens, or less than {SMALLEST_SHARE:.0%}",
        advice="Look whether the replies are where they belong, and whether cutting (--truncation_strategy) takes them "
        "away.",
        examples=tuple(
            f"{measured.place(samples[i])}: {learnt[i]} of {lengths[i]} tokens are learnt" for i in poor[:EXAMPLES]
        ),
    )  # fmt: skip


def _prove_ended(measured: Measured, samples: Sequence[int], template: TemplateOptions) -> Proof:
    """That of every sample that was not cut a token which ends a reply is learnt at the end."""
    limit = template.max_length if template.truncation_strategy != "delete" else None
    whole = [sample for sample in samples if limit is None or measured.numbers.lengths[sample] < limit]
    endless = [sample for sample in whole if not measured.numbers.stopped[sample]]
    return Proof(
        claim="what is learnt ends with a stop token",
        holds=not endless,
        found=f"{len(whole) - len(endless):,} of {counted(len(whole), 'sample')} that were not cut",
        advice="A model that never learns to stop goes on for ever. Choose a --template that ends replies, or a "
        "tokenizer that has the token which ends them.",
        examples=tuple(measured.place(sample) for sample in endless[:EXAMPLES]),
    )
