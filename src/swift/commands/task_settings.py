"""This file knows what a task decides: what its rows are made into, and which options its checkpoint fills in."""

from __future__ import annotations

from swift.chat.reading import Readings
from swift.chat.render import Renderer
from swift.core import environment
from swift.core.errors import UsageError
from swift.data.groups import Draw
from swift.data.preparer import Renders
from swift.data.tasks import OF_MODELS, Aim, Classes
from swift.models.info import ModelInfo
from swift.models.tasks import labels_of, template_of
from swift.options.declare import Origin, Source
from swift.options.model import ModelOptions
from swift.options.template import TemplateOptions


def settled_task(
    model: ModelOptions, template: TemplateOptions, info: ModelInfo
) -> tuple[dict[str, object], dict[str, Source]]:
    """The options that the checkpoint decides for its task, and why: labels of a classifier, layout of its texts."""
    changes: dict[str, object] = {}
    sources: dict[str, Source] = {}
    if model.task_type == "seq_cls":
        labels = labels_of(info, model)
        for name, value in (("num_labels", labels.num_labels), ("problem_type", labels.problem)):
            if getattr(model, name) is None:
                changes[name], sources[name] = value, Source(Origin.RULE, f"follows {labels.why}")
    if model.task_type != "causal_lm" and template.template is None and template.use_chat_template:
        layout = template_of(info)
        if layout is not None:
            changes["template"], sources["template"] = (
                layout,
                Source(Origin.RULE, f"what {info.family} was trained with"),
            )
    return changes, sources


def aim_of(model: ModelOptions, seed: int) -> Aim:
    """What the samples of a training are for; `seed` is that of draws."""
    task = OF_MODELS[model.task_type]
    if task in ("reranker", "generative_reranker"):
        return Aim(task, draw=_draw(seed))
    if task != "seq_cls":
        return Aim(task)
    assert model.num_labels is not None, "it is settled before rows are read"
    assert model.problem_type is not None, "it is settled before rows are read"
    return Aim(task, Classes(model.problem_type, model.num_labels))


def _draw(seed: int) -> Draw:
    """Which documents of a row are given at a time (`MAX_POSITIVE_SAMPLES`, `MAX_NEGATIVE_SAMPLES`)."""
    variables = (environment.MAX_POSITIVE_SAMPLES, environment.MAX_NEGATIVE_SAMPLES)
    counts = [variable.integer() or 0 for variable in variables]
    for variable, count in zip(variables, counts, strict=True):
        if count < 1:
            raise UsageError(f"The environment variable {variable.name} must be at least 1 (got {count}).")
    return Draw(counts[0], counts[1], seed)


def renders_for(aim: Aim, renderer: Renderer) -> Renders:
    """What makes the samples of a task: tasks that only read learn no token."""
    return Readings(renderer) if aim.reads else renderer
