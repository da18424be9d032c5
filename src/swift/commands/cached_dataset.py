"""This file knows `swift export --to_cached_dataset true`: rows are tokenized once, for runs that begin at once."""

from __future__ import annotations

from pathlib import Path

from swift.chat.render import Renderer
from swift.core.errors import DataError, UsageError
from swift.core.logs import get_logger
from swift.data.cached import Manifest, Mode, write_cached
from swift.data.encode import TASK_OF, Preparation
from swift.data.library import HubAccess
from swift.data.tasks import Aim
from swift.export.folder import appearing, require_free
from swift.hub.models import access
from swift.models.families import layout_for
from swift.models.info import ModelInfo, model_info
from swift.models.processor import load_tokenizer
from swift.options.commands import Export

PARTS: dict[Mode, tuple[str, ...]] = {"train": ("sample",), "rlhf": ("chosen", "rejected"), "kto": ("sample",)}
"""What the samples of a row are."""
RUNS: dict[Mode, str] = {"train": "sft", "rlhf": "rlhf", "kto": "rlhf --rlhf_type kto"}
"""The command that uses them."""


def to_cached_dataset(command: Export) -> Path:
    """Tokenize the rows and write them as cached data sets `train` and `val`; the folder of both, absolute.

    Rows are cut or left out as `--max_length` says, if it says anything; a run that uses them can limit them further.
    Raises UsageError when there are no rows or when they shall be split, DataError when none is left.
    """
    data, template, mode = command.data, command.template, command.export.template_mode
    if not (data.dataset or data.val_dataset or data.cached_dataset or data.cached_val_dataset):
        raise UsageError("--to_cached_dataset true needs rows: name data with --dataset.")
    if template.truncation_strategy == "split":
        raise UsageError("--truncation_strategy split cannot be cached: choose delete, left or right.")
    info = model_info(command.model, access(command.general))
    output = output_folder(command.export.output_dir, info)
    require_free(output, exist_ok=command.export.exist_ok, inputs=(info.path,))
    tokenizer = load_tokenizer(info, command.model.new_special_tokens)
    renderer = Renderer(tokenizer, template, layout=layout_for(info, template, tokenizer))
    hub, plugins = HubAccess(command.general.use_hf, command.general.hub_token), command.general.external_plugins
    with Preparation(data, template, renderer, hub, plugins, aim=Aim(TASK_OF[mode]), keeps_rows=True) as preparation:
        order, report = preparation.arrange(), preparation.report
        with appearing(output) as folder:
            written: dict[str, Manifest] = {}
            for name, rows in (("train", order.train), ("val", order.val)):
                if rows:
                    written[name] = write_cached(
                        folder / name, preparation.with_samples(rows), mode=mode, parts=PARTS[mode],
                        rendering=renderer.identity(), max_length=template.max_length,
                    )  # fmt: skip
                    if not written[name].rows:
                        raise DataError(f"No row is left for {name}: they were left out.\n{report.causes()}")
    report.train = written["train"].samples if "train" in written else 0
    report.val = written["val"].samples if "val" in written else 0
    report.log()
    for name, manifest in written.items():
        get_logger().info(
            "%s: %d rows, %d samples, %d tokens", output / name, manifest.rows, manifest.samples, manifest.tokens
        )
    flags = {"train": "--cached_dataset", "val": "--cached_val_dataset"}
    words = " ".join(f"{flags[name]} {output / name}" for name in written)
    get_logger().info("use it: swift %s --model %s %s", RUNS[mode], info.path, words)
    return output


def output_folder(output_dir: str | None, info: ModelInfo) -> Path:
    """Where the cached data sets go, absolute: `--output_dir`, else the model's name plus `-cached_dataset`, here."""
    return Path(output_dir or f"{info.path.name}-cached_dataset").expanduser().resolve()
