"""This file knows `swift export` and `swift merge-lora`: which export is asked for, and how an adapter is merged."""

from __future__ import annotations

from pathlib import Path

from swift.commands.begin import begin
from swift.commands.cached_dataset import to_cached_dataset
from swift.commands.ollama import tell, to_ollama, write_modelfile
from swift.commands.task_settings import settled_task
from swift.core.errors import UsageError
from swift.core.logs import get_logger
from swift.export.folder import appearing, copy_companions, require_free
from swift.export.gate import Heard, prompts_for, require_same
from swift.export.weights import shard_size, write_weights
from swift.hub.base import local_folder
from swift.hub.models import access
from swift.hub.pushing import Target, open_repository, push
from swift.models.heads import with_padding
from swift.models.info import ModelInfo, model_info
from swift.models.load import load_model
from swift.models.loader import saved_files
from swift.models.processor import load_tokenizer
from swift.models.sentence import describe
from swift.models.tasks import head_of
from swift.models.vocabulary import with_room
from swift.options.commands import Export
from swift.options.declare import Origin, Source
from swift.options.model import ModelOptions
from swift.options.saved import write_args
from swift.tuners.merge import merge_heard


def run(command: Export) -> Path:
    """Export what the command asks for; the folder it went to, absolute."""
    if command.export.to_cached_dataset:
        other = next((name for name in ("merge_lora", "push_to_hub") if command.values()[name]), None)
        if other is not None:
            raise UsageError(
                f"--{other} and --to_cached_dataset cannot be exported at once. Run swift export for each."
            )
        return to_cached_dataset(begin(command, command.general))
    if command.export.to_ollama and not command.merge.merge_lora:
        if command.export.push_to_hub:
            raise UsageError(
                "--to_ollama writes a Modelfile that names a folder of this machine, which is of no use on a hub. Add "
                "--merge_lora true (with --adapters), which makes a folder of both, or drop --push_to_hub."
            )
        return to_ollama(begin(command, command.general))
    if not command.merge.merge_lora and not command.export.push_to_hub:
        raise UsageError(
            "swift export has nothing to do: no kind of export was asked for. Add --merge_lora true (with --adapters) "
            "to merge an adapter into its model, --to_ollama true to write a Modelfile for Ollama, --to_cached_dataset "
            "true to tokenize data sets beforehand, or --push_to_hub true to push a checkpoint."
        )
    if command.merge.merge_lora and not command.model.adapters:
        raise UsageError("--merge_lora true needs the adapter to merge: --adapters <checkpoint folder>.")
    command = begin(command, command.general)
    target = open_repository(target_of(command)) if command.export.push_to_hub else None
    folder = merge_lora(command) if command.merge.merge_lora else checkpoint_of(command)
    if target is not None:
        push(target, folder, command.export.commit_message)
    return folder


def target_of(command: Export) -> Target:
    """The repository to push to."""
    export, general = command.export, command.general
    assert export.hub_model_id is not None, "a rule asks for it"
    return Target(export.hub_model_id, general.use_hf, export.hub_private_repo, general.hub_token)


def checkpoint_of(command: Export) -> Path:
    """The checkpoint that is pushed as it is: the adapter where one is given, else the model."""
    adapters, model = command.model.adapters, command.model.model
    if len(adapters) > 1:
        raise UsageError("--push_to_hub true pushes one adapter: give --adapters one folder, or merge them.")
    flag, name = ("--adapters", adapters[0]) if adapters else ("--model", str(model))
    folder = local_folder(name, flag)
    if folder is None:
        raise UsageError(f"--push_to_hub true pushes a folder of this machine, and {flag} {name} is none.")
    return folder


def merge_lora(command: Export) -> Path:
    """Merge the adapters into their model and save it as one that needs no peft.

    All that can be refused is refused before weights are loaded; the folder appears only when it is complete.
    """
    size = shard_size(command.merge.max_shard_size)
    info = model_info(command.model, access(command.general))
    output = output_folder(command, info)
    require_free(output, exist_ok=command.export.exist_ok, inputs=(info.path, *info.adapters))
    options = command.model
    if options.device_map is None:
        options = options.model_copy(update={"device_map": "cpu"})  # merging is additions: memory counts, not speed
    changes, sources = settled_task(options, command.template, info)
    command = command.replace(changes, sources)
    options = command.model.model_copy(update={"device_map": options.device_map})
    with appearing(output) as folder:
        heard = _written(command, options, info, folder, size)
        write_args(_standing_alone(command, output), folder)
        require_same(folder, options, info.family, heard)
        if command.export.to_ollama:
            alone = ModelOptions(model=str(folder), model_type=info.family)
            write_modelfile(command, model_info(alone), folder, model=".")
    get_logger().info("merged model: %s", output)
    get_logger().info("try it: swift infer --model %s", output)
    if command.export.to_ollama:
        tell(output)
    return output


def _written(command: Export, options: ModelOptions, info: ModelInfo, folder: Path, size: int) -> Heard:
    """Merge, and write the model and what belongs to it; what it said before. The model is let go of."""
    model = load_model(info, options, training=False)
    tokenizer = load_tokenizer(info, options.new_special_tokens)
    if options.new_special_tokens:
        with_room(model, tokenizer)
    with_padding(model, tokenizer, options.task_type)
    prompts = prompts_for(model, tokenizer)
    merged = merge_heard(model, info.adapters, prompts)
    write_weights(merged.model, folder, max_shard_size=size, safe=command.merge.safe_serialization)
    if options.task_type == "embedding":
        describe(folder, head_of(info, options, tokenizer), merged.model.config)
    copied = copy_companions(info.path, info.adapters, folder, saved_files(info))
    get_logger().info("beside the weights: %s", ", ".join(copied) or "nothing")
    return Heard(prompts, merged.without, merged.with_adapter, merged.model.dtype)


def output_folder(command: Export, info: ModelInfo) -> Path:
    """Where the merged model goes, absolute: `--output_dir`, else beside the first adapter, its name with a suffix."""
    if command.export.output_dir is not None:
        return Path(command.export.output_dir).expanduser().resolve()
    suffix = "ollama" if command.export.to_ollama else "merged"
    return info.adapters[0].with_name(f"{info.adapters[0].name}-{suffix}")


def _standing_alone(command: Export, output: Path) -> Export:
    """The command as a later one should read it from args.json: the model is the merged one, without adapters."""
    why = Source(Origin.RULE, f"merged from {command.model.model} and {', '.join(command.model.adapters)}")
    return command.replace({"model": str(output), "adapters": []}, {"model": why, "adapters": why})
