"""Tiny real trainings of tasks other than writing, for the tests of their trainer."""

from __future__ import annotations

import json
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy
import torch
from peft import LoraConfig, get_peft_model
from runs import PLAIN, Run

import tiny
from swift.chat.render import Renderer, Sample
from swift.commands.task_settings import renders_for
from swift.data.collate import Filled, Flattened, Padded
from swift.data.collate_tasks import TaskBatch
from swift.data.groups import Draw, GroupSet
from swift.data.samples import SampleSet, SampleStore, pack
from swift.data.stream import Stream, open_stream
from swift.data.tasks import Aim, Classes
from swift.models.heads import Head
from swift.models.info import model_info
from swift.models.load import load_model
from swift.options.data import DataOptions
from swift.options.general import GeneralOptions
from swift.options.model import ModelOptions
from swift.options.template import TemplateOptions
from swift.options.tracking import TrackingOptions
from swift.options.training import TrainingOptions
from swift.trainers.arguments import training_arguments
from swift.trainers.feed import Companions, Feed
from swift.trainers.isolation import isolate
from swift.trainers.objectives import objective_of
from swift.trainers.outputs import Continuation
from swift.trainers.representation import Goal, RepresentationTrainer
from swift.trainers.session import open_session
from swift.trainers.sharing import share

LOSSES = {
    "embedding": "cosine_similarity",
    "reranker": "pointwise_reranker",
    "generative_reranker": "pointwise_reranker",
}


def text(draw: random.Random, label: Any = None) -> Sample:
    size = draw.randint(3, 18)
    return Sample(
        [draw.randrange(5, 400) for _ in range(size)], [-100] * size, None, {} if label is None else {"label": label}
    )


def rows(task: str, count: int = 16, seed: int = 0, problem: str = "single_label_classification") -> list[list[Sample]]:
    """Rows of a task; embeddings and rerankers with one to four documents that do not match."""
    draw = random.Random(seed)
    labels = {
        "single_label_classification": lambda: draw.randrange(3),
        "multi_label_classification": lambda: [c for c in range(3) if draw.random() < 0.5],
        "regression": lambda: [draw.random() for _ in range(3)],
    }
    made = []
    for _ in range(count):
        if task == "seq_cls":
            made.append([text(draw, labels[problem]())])
            continue
        documents = [text(draw, 1), *(text(draw, 0) for _ in range(draw.randint(1, 4)))]
        made.append([text(draw), *documents] if task == "embedding" else documents)
    return made


def stored(task: str, made: list[list[Sample]], draw: Draw | None = None):
    store = SampleStore(pack(made))
    if task == "seq_cls":
        return SampleSet(store, range(len(made)))
    counts = numpy.array([len(row) for row in made])
    return GroupSet(store, numpy.cumsum(counts) - counts, counts, draw)


def aim_of(task: str, problem: Any = "single_label_classification", draw: Draw | None = None) -> Aim:
    return Aim(task, Classes(problem, 3) if task == "seq_cls" else None, draw)


def written(task: str, file: Path, count: int, broken: int = 9) -> Path:
    """Rows of a task as text, of ragged lengths; every so many lines of them cut."""
    lines = []
    for i in range(count):
        asked = {"messages": [{"role": "user", "content": f"What is {i}?" + " Tell me." * (i % 4)}]}
        found = [
            [{"role": "assistant", "content": f"It is {i + j}." + " Good-bye." * (j % 3)}] for j in range(2 + i % 3)
        ]
        more = (
            {"label": i % 3} if task == "seq_cls" else {"positive_messages": found[:1], "negative_messages": found[1:]}
        )
        line = json.dumps({**asked, **more})
        lines.append(line[:-9] if i % broken == broken - 1 else line)
    file.write_text("\n".join(lines))
    return file


def streamed(task: str, *files: Path, packing_length: int | None = None, **options: Any) -> Stream:
    data = DataOptions(dataset=[str(file) for file in files], streaming=True, **options)
    template = TemplateOptions(max_length=128, truncation_strategy="delete")
    aim = aim_of(task)
    renders = renders_for(aim, Renderer(tiny.tokenizer(), template))
    return open_stream(data, template, renders, packing_length=packing_length, aim=aim)


def model(folder: Path, head: Head, *, flat: bool = False):
    """The tiny model with the head of a task."""
    if not (folder / "config.json").is_file():
        tiny.checkpoint(folder)
    options = ModelOptions(model=str(folder), task_type=head.task)
    if head.task == "seq_cls":
        options = options.model_copy(update={"num_labels": head.num_labels, "problem_type": head.problem})
    torch.manual_seed(0)
    made = load_model(model_info(options), options, training=True)
    made.config.pad_token_id = 0
    if flat:
        isolate(made, None, "--padding_free")
    return made


def adapted(made: Any, head: Head, lora: float | None):
    """The model with an adapter of some dropout, or as it is."""
    if lora is None:
        return made
    torch.manual_seed(0)
    kind = "SEQ_CLS" if head.task in ("seq_cls", "reranker") else None
    return get_peft_model(made, LoraConfig(
        r=4, lora_dropout=lora, target_modules=["q_proj", "v_proj"], task_type=kind, init_lora_weights=False,
        modules_to_save=["score"] if kind else None,
    ))  # fmt: skip


def prepare(folder: Path, base: Path, task: str, *, train: Any = None, val: Any = None, lora: float | None = None,
            flat: bool = False, problem: Any = "single_label_classification", draw: Draw | None = None,
            eval_metric: str | None = None, loss_type: str | None = None, sharers: int = 1, pooling: Any = "last",
            **options: Any) -> Run:  # fmt: skip
    """A trainer of a task; `sharers` processes share each row."""
    folder.mkdir(parents=True, exist_ok=True)
    training = TrainingOptions(**{**PLAIN, **options})
    args = training_arguments(
        training, GeneralOptions(seed=42), output_dir=folder, precision="no", extra={"use_cpu": True}
    )
    head = Head(task, problem, 3 if task == "seq_cls" else 1, pooling, judges=(10, 11), pad_token_id=0)
    made = model(base, head, flat=flat or sharers > 1)
    mesh = share(made, sharers, timedelta(minutes=2)) if sharers > 1 else None
    tokens = Filled(0, 2 * sharers) if sharers > 1 else Flattened() if flat else Padded(0)
    aim = aim_of(task, problem, draw)
    session = open_session(folder, training, TrackingOptions(report_to=["none"]))
    trainer = RepresentationTrainer(
        adapted(made, head, lora), args,
        Feed(
            stored(task, rows(task, problem=problem), draw) if train is None else train,
            None if val is None else stored(task, val, draw), TaskBatch(tokens, aim), 42,
            training.train_dataloader_shuffle, training.group_by_length, draw is not None, mesh,
        ),
        Companions(tiny.tokenizer(), tiny.CHATML),
        Goal(head, objective_of(head, loss_type or LOSSES.get(task)), eval_metric), session.callbacks,
    )  # fmt: skip
    return Run(trainer, session)


def train(folder: Path, base: Path, task: str, *, resume: Path | None = None, **settings: Any) -> Run:
    run = prepare(folder, base, task, **settings)
    run.outcome = run.session.run(run.trainer, Continuation(resume) if resume else None, {})
    return run
