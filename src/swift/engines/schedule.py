"""This file knows who is served when: one thread owns the model, and takes requests in as others are done.

A turn of the thread reads some tokens of prompts that wait, then gives every row that grows one token more. So a long
prompt does not make the others wait long, and nobody waits for the longest reply of a batch.

Axes: R rows that begin or grow, V vocabulary.
"""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from swift.core.errors import EngineError
from swift.engines.base import TokenLogprob
from swift.engines.choosing import choose
from swift.engines.jobs import Job
from swift.engines.rows import Row
from swift.engines.runner import Reading, Runner
from swift.engines.telling import token_logprobs

PATIENT = 4096
"""Tokens of prompts that are read at once while nobody watches a reply grow."""
PADDING, TOLERATED = 0.25, 128
"""Share of padding up to which prompts of different lengths are read together, and tokens of it that never matter."""
LOOK_AHEAD = 64
"""Waiting requests among which one is sought that fits beside the first."""
LINGER = 2.0
"""Seconds for which the thread stays without work."""


Errand = tuple[Callable[[], None], SimpleQueue[BaseException | None]]
"""What is to be done, and who hears that it is."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is done at once.

    requests: how many are served together; -1 is all.
    watched: tokens of prompts that are read between two tokens of replies that someone watches.
    """

    requests: int
    watched: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """What has to be known of tokens: how they read, and which of them end a turn."""

    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]


class Schedule:
    """Requests in the order they came, the rows that grow, and the thread that serves them.

    make_runner: makes the tensors behind the rows, in the thread, when the first request is there.
    search: answers requests of beam search at once.
    """

    def __init__(
        self, make_runner: Callable[[], Runner], search: Callable[[Sequence[Job]], None], tokens: Tokens, limits: Limits
    ) -> None:
        self._make_runner = make_runner
        self._search = search
        self._tokens = tokens
        self._limits = limits
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._errands: deque[Errand] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False
        # What follows belongs to the thread.
        self._runner: Runner | None = None
        self._running: list[Job] = []
        self._reading: Reading | None = None
        self._owner: dict[int, Job] = {}

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take requests in, behind those that wait. Raises EngineError once the engine is closed."""
        self._wake(lambda: self._waiting.extend(jobs))

    def _wake(self, enter: Callable[[], None]) -> None:
        with self._changed:
            if self._closed:
                raise EngineError("The engine is closed.")
            enter()
            if self._thread is None:
                # A thread that still runs when the interpreter ends would end the process with an error of C++.
                atexit.unregister(self.close)
                atexit.register(self.close)
                self._thread = threading.Thread(target=self._work, name="swift engine", daemon=True)
                self._thread.start()
            self._changed.notify()

    def between_steps(self, errand: Callable[[], None]) -> None:
        """Let the thread do something with the model while nothing runs on it; returns when it is done."""
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._wake(lambda: self._errands.append((errand, done)))
        error = done.get()
        if error is not None:
            raise error

    def close(self) -> None:
        """End what is running, and the thread."""
        atexit.unregister(self.close)
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    # ----------------------------------------------------------------------------------------------- in the thread

    def _work(self) -> None:
        """Turns, as long as there is something to do."""
        with torch.inference_mode():
            while self._has_work():
                try:
                    self._turn()
                except BaseException as error:  # noqa: BLE001 (whatever it is, those who wait must hear of it)
                    self._fail(error)
        if self._closed:
            self._fail(EngineError("The engine was closed before the reply was complete."))

    def _has_work(self) -> bool:
        with self._changed:
            if not (self._waiting or self._running or self._errands or self._closed):
                self._changed.wait(LINGER)
            if self._closed or not (self._waiting or self._running or self._errands):
                self._thread = None
                return False
            return True

    def _turn(self) -> None:
        self._run_errands()
        if self._runner is None:
            self._runner = self._make_runner()
        runner = self._runner
        self._drop_cancelled(runner)
        if self._reading is None:
            self._begin(runner)
        if self._reading is not None:
            logits_RV = self._reading.advance(self._tokens_to_read())
            if logits_RV is not None:
                reading, self._reading = self._reading, None
                going = self._take(reading.rows, logits_RV)
                if going:
                    reading.enter(going)
        if runner.rows:
            rows, logits_RV = runner.step()
            going = {id(row) for row in self._take(rows, logits_RV)}
            for row in rows:
                if id(row) not in going:
                    runner.leave(row)
        self._tell()

    def _run_errands(self) -> None:
        while self._errands:
            errand, done = self._errands.popleft()
            try:
                with torch.inference_mode(False):
                    errand()
            except BaseException as error:  # noqa: BLE001 (it belongs to who sent the errand)
                done.put(error)
            else:
                done.put(None)

    def _drop_cancelled(self, runner: Runner) -> None:
        for row in list(runner.rows):
            if self._owner[id(row)].done:
                runner.leave(row)
        if self._reading is not None and all(self._owner[id(row)].done for row in self._reading.rows):
            self._reading = None
        self._forget_done()

    def _tell(self) -> None:
        for job in self._running:
            job.tell()
        self._forget_done()

    def _forget_done(self) -> None:
        """Requests that nothing is done for any more are no longer served."""
        held = {id(row) for row in self._runner.rows} if self._runner is not None else set()
        held |= {id(row) for row in self._reading.rows} if self._reading is not None else set()
        for job in self._running:
            if job.done and not any(id(row) in held for row in job.rows):
                for row in job.rows:
                    del self._owner[id(row)]
        self._running = [job for job in self._running if id(job.rows[0]) in self._owner]

    def _fail(self, error: BaseException) -> None:
        """Those who are served hear of an error; when nobody is, those who wait."""
        failed = self._running
        with self._changed:
            if self._closed or not failed:
                failed = [*failed, *self._waiting]
                self._waiting.clear()
        for job in failed:
            job.fail(error)
        while self._closed and self._errands:
            self._errands.popleft()[1].put(error)
        self._running, self._reading = [], None
        self._owner.clear()
        if self._runner is not None:
            self._runner.reset()

    # ------------------------------------------------------------------------------------------------- who is next

    def _begin(self, runner: Runner) -> None:
        """Choose some of those who wait, and begin to read their prompts."""
        searches = self._searches_first()
        if searches:
            self._running += searches
            self._owner.update((id(row), job) for job in searches for row in job.rows)
            self._search(searches)
        with self._changed:
            room = len(self._waiting)
            if self._limits.requests != -1:
                room = min(room, self._limits.requests - len(self._running))
            if room < 1 or (self._running and not runner.joins):
                return
            seen = list(islice(self._waiting, max(LOOK_AHEAD, room)))
            chosen = self._fitting(runner, seen, room)
            for job in chosen:
                self._waiting.remove(job)
        if chosen:
            self._running += chosen
            self._owner.update((id(row), job) for job in chosen for row in job.rows)
            self._reading = runner.read([job.rows for job in chosen])

    def _searches_first(self) -> list[Job]:
        """The requests of beam search at the head of those who wait, which are answered to their end."""
        found: list[Job] = []
        with self._changed:
            while self._waiting and (self._waiting[0].cancelled or self._waiting[0].searches):
                if len(found) == self._limits.requests:
                    break
                job = self._waiting.popleft()
                if not job.cancelled:
                    found.append(job)
        return found

    def _fitting(self, runner: Runner, waiting: Sequence[Job], room: int) -> list[Job]:
        """The first of those who wait, and others whose prompts can be read beside its own.

        A prompt whose unknown beginning is just being read for another one waits for it.
        """
        chosen: list[Job] = []
        width = total = 0
        begun: set[bytes] = set()
        for job in waiting:
            if len(chosen) == room or job.searches or not self._may_join(runner, job, chosen):
                break
            unread, beginning = runner.unread(job.rows[0])
            if job.cancelled or beginning in begun:
                continue
            area = max(width, unread) * (len(chosen) + 1)
            padding = area - total - unread
            wasteful = padding > max(PADDING * area, TOLERATED) or area > self._tokens_to_read()
            if chosen and runner.joins and wasteful:
                continue
            chosen.append(job)
            width, total = max(width, unread), total + unread
            if beginning is not None:
                begun.add(beginning)
        return chosen

    def _may_join(self, runner: Runner, job: Job, chosen: Sequence[Job]) -> bool:
        """Whether the adapter of a request allows it to be served with the others."""
        others = [*self._running, *chosen]
        return runner.mixes or not others or others[0].request.adapter == job.request.adapter

    def _tokens_to_read(self) -> int:
        watched = any(job.streamed and any(row.token_ids for row in job.rows) for job in self._running)
        return self._limits.watched if watched else PATIENT

    # ------------------------------------------------------------------------------------------------------ tokens

    def _take(self, rows: Sequence[Row], logits_RV: Tensor) -> list[Row]:
        """Give each row its next token; returns those that go on."""
        chosen = choose(logits_RV, rows)
        told = self._told(rows, logits_RV, chosen)
        going = []
        for row, token_id in zip(rows, chosen, strict=True):
            job = self._owner[id(row)]
            if job.done:
                continue
            row.add(token_id, self._tokens.end_ids)
            fresh = told.get(id(row))
            if fresh is not None and token_id not in self._tokens.end_ids:
                row.logprobs.append(fresh)
            try:
                row.follow(token_id)
            except EngineError as error:
                job.fail(error)
                continue
            if row.reason is None:
                job.grew(row)
                going.append(row)
            else:
                job.finished(row, self._tokens.tokenizer)
        return going

    def _told(self, rows: Sequence[Row], logits_RV: Tensor, chosen: Sequence[int]) -> dict[int, TokenLogprob]:
        """The log-probabilities of those rows that want them."""
        places = [place for place, row in enumerate(rows) if row.choice.top_logprobs is not None]
        if not places:
            return {}
        some = logits_RV if len(places) == len(rows) else logits_RV[torch.tensor(places, device=logits_RV.device)]
        tops = [rows[place].choice.top_logprobs or 0 for place in places]
        told = token_logprobs(self._tokens.tokenizer, some, [chosen[place] for place in places], tops)
        return {id(rows[place]): each for place, each in zip(places, told, strict=True)}
