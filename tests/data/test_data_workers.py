from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import pytest

import tiny
from swift.chat.messages import Conversation
from swift.chat.render import Renderer, Sample
from swift.core.errors import DataError, RunError
from swift.core.logs import get_logger
from swift.data.encode import LoadedData, load_samples
from swift.data.workers import Crew, ordered
from swift.options.data import DataOptions
from swift.options.template import TemplateOptions


def slower_first(number: int) -> int:
    time.sleep(0.05 if number % 4 == 0 else 0)
    return number * number


def whole(number: int) -> numpy.ndarray:
    return numpy.full(300_000, number, dtype=numpy.int32)  # more than a pipe holds


def failing(number: int) -> int:
    if number == 5:
        raise DataError("row 5 is wrong")
    return number


def dying(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def speaking(number: int) -> int:
    get_logger().warning("said by all")
    get_logger().log(logging.WARNING, "said by %d", number)
    return os.getpid()


class UntoldError(Exception):
    def __init__(self, number: int) -> None:
        super().__init__("no pickle can make me")
        self.made_of = lambda: number


def unsendable(number: int) -> int:
    raise UntoldError(number)


class UnreadableError(Exception):
    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"{why} {number}")  # pickle makes it again of this one word


def unreceivable(number: int) -> int:
    raise UnreadableError(number, "no pickle can make me again of")


def test_results_come_in_the_order_of_the_work_whoever_is_quicker():
    assert list(ordered(slower_first, range(40), 3)) == [number * number for number in range(40)]
    assert list(ordered(slower_first, range(3), 1)) == [0, 1, 4]
    assert list(ordered(slower_first, [], 2)) == []


def test_large_results_and_large_tasks_do_not_block_each_other():
    found = [int(array[0]) for array in ordered(whole, range(12), 2)]
    assert found == list(range(12))
    tasks = [numpy.full(300_000, number) for number in range(6)]
    assert [int(number) for number in ordered(numpy.max, tasks, 2)] == list(range(6))


def test_a_crew_keeps_its_processes_from_one_work_to_the_next():
    with Crew(speaking, 2) as crew:
        first, second = set(crew.results(range(20))), set(crew.results(range(20)))
    assert first == second
    assert os.getpid() not in first


def test_an_error_of_the_work_is_raised_with_its_kind():
    done = []
    with pytest.raises(DataError, match="row 5 is wrong") as caught:
        done.extend(ordered(failing, range(100), 2))
    assert "in failing" in str(caught.value.__cause__)
    assert done == list(range(len(done)))
    assert len(done) <= 5
    for work, name in ((unsendable, "UntoldError"), (unreceivable, "UnreadableError")):
        with pytest.raises(RunError, match=name):
            list(ordered(work, range(2), 2))


def test_results_that_nobody_waited_for_do_not_answer_the_next_call():
    with Crew(failing, 2) as crew:
        with pytest.raises(DataError):
            list(crew.results(range(4, 40)))
        assert list(crew.results(range(6, 20))) == list(range(6, 20))
        abandoned = crew.results(range(6, 40))
        assert next(abandoned) == 6
        abandoned.close()
        assert list(crew.results(range(20, 30))) == list(range(20, 30))


def test_a_process_that_dies_is_an_error_that_says_how():
    with pytest.raises(RunError, match=r"--dataset_num_proc.*by signal 9 \(SIGKILL\).*Memory"):
        list(ordered(dying, range(10), 2))


def test_what_processes_log_is_said_once(logged: list[str]):
    list(ordered(speaking, range(6), 2))
    assert logged.count("said by all") == 1
    assert sorted(message for message in logged if message != "said by all") == [f"said by {i}" for i in range(6)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


SCRIPT = """
import os, sys, time
from swift.data.workers import ordered
def work(number):
    os.write(1, f"{os.getpid()}\\n".encode())  # at once, so that two lines do not run into each other
    time.sleep(3)
for _ in ordered(work, range(100), 2):
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_one_that_started_it(tmp_path: Path, how: signal.Signals):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    pids = {int(process.stdout.readline()) for _ in range(2)}
    assert all(alive(pid) for pid in pids)
    if how is signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        process.send_signal(how)
    _, said = process.communicate(timeout=30)
    until = time.monotonic() + 15
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)
    assert said.count("Traceback") <= 1  # that of the first process, and none of the others


# ----------------------------------------------------------------------------------------------------- preparing rows


class Signing:
    """A renderer that signs its samples with its process."""

    def __init__(self, template: TemplateOptions) -> None:
        self.inner = Renderer(tiny.tokenizer(), template)

    def identity(self) -> dict[str, Any]:
        return self.inner.identity()

    def samples(self, conversations: list[Conversation]) -> list[Sample | DataError]:
        made = self.inner.samples(conversations)
        for sample in made:
            if isinstance(sample, Sample):
                sample.extra = {"process": os.getpid()}
        return made


def load(files: list[Path], processes: int, template: TemplateOptions, **options: Any) -> LoadedData:
    data = DataOptions(dataset=[str(file) for file in files], dataset_num_proc=processes, **options)
    return load_samples(data, template, Renderer(tiny.tokenizer(), template))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    rows = [*tiny.conversations(700), {"messages": []}, {"query": "no reply"}, *tiny.conversations(700)]
    lines = tiny.jsonl(tmp_path / "rows.jsonl", rows * 8)  # more than one block
    table = tmp_path / "rows.csv"
    table.write_text("query,response\n" + "".join(f"q {i},a {i}\n" for i in range(2500)) + "only one cell\n")
    return [lines, table]


@pytest.mark.parameter("dataset_num_proc")
def test_any_number_of_processes_gives_the_same_samples_in_the_same_order(files: list[Path], logged: list[str]):
    template = TemplateOptions(max_length=60, truncation_strategy="right")
    alone = load(files, 1, template, split_dataset_ratio=0.1)
    shared = load(files, 2, template, split_dataset_ratio=0.1)
    assert len(alone.train) > 5000
    for one, two in ((alone.train, shared.train), (alone.val, shared.val)):
        assert one is not None
        assert two is not None
        assert one.lengths == two.lengths
        assert all(one[i] == two[i] for i in range(0, len(one), 97))
    assert alone.report == shared.report
    assert alone.report.num_dropped > 17
    assert alone.val_rows == shared.val_rows


@pytest.mark.parameter("dataset_num_proc")
def test_so_many_processes_prepare_rows(files: list[Path]):
    template = TemplateOptions()
    data = DataOptions(dataset=[str(file) for file in files], dataset_num_proc=2)
    train = load_samples(data, template, Signing(template)).train
    processes = {train[i].extra["process"] for i in range(len(train))}
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_a_number_of_rows_is_drawn_alike_by_any_number_of_processes(files: list[Path]):
    template = TemplateOptions()
    chosen = [Path(f"{file}#50") for file in files]
    alone, shared = load(chosen, 1, template).train, load(chosen, 2, template).train
    assert 98 <= len(alone) <= 100
    assert [alone[i] for i in range(len(alone))] == [shared[i] for i in range(len(shared))]


def test_strict_names_the_first_bad_row_whoever_reads_it(files: list[Path]):
    for processes in (1, 2):
        with pytest.raises(DataError, match=r"rows.jsonl:701: messages: is empty"):
            load(files, processes, TemplateOptions(), strict=True)


class Breaking(Signing):
    """A renderer, as of a plugin, that has a mistake."""

    def samples(self, conversations: list[Conversation]) -> list[Sample | DataError]:
        if any("What is 3 and" in message.content for row in conversations for message in row.messages):
            raise KeyError("three")
        return super().samples(conversations)


def test_an_unexpected_failure_costs_its_row_and_names_it(tmp_path: Path):
    rows = tiny.jsonl(tmp_path / "rows.jsonl", [{"query": f"What is {i} and 1?", "response": "So."} for i in range(9)])
    for processes in (1, 2):
        data = DataOptions(dataset=[str(rows)], dataset_num_proc=processes)
        loaded = load_samples(data, TemplateOptions(), Breaking(TemplateOptions()))
        assert len(loaded.train) == 8
        [bad] = loaded.report.bad
        assert str(bad).endswith("rows.jsonl:4: cannot be rendered (KeyError: 'three')")


def test_a_renderer_can_be_sent_to_a_process_that_was_not_forked():
    import pickle

    template = TemplateOptions()
    renderer = Renderer(tiny.tokenizer(), template)
    conversation = Conversation(())
    again = pickle.loads(pickle.dumps(renderer))
    assert isinstance(again.samples([conversation])[0], DataError)
    from swift.chat.messages import Message

    said = Conversation((Message("user", "Hello"), Message("assistant", "Good-bye")))
    assert again.sample(said) == renderer.sample(said)
