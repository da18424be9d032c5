"""This file knows `swift export --to_ollama`: a Modelfile for a model, proven to prompt as the model was trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from swift.chat.messages import Conversation, Message
from swift.chat.render import Renderer
from swift.core.errors import UsageError
from swift.core.logs import get_logger
from swift.export.folder import appearing, require_free
from swift.export.ollama import Modelfile, Prompts, require_same, template_of, without_bos
from swift.export.turns import Render, turns_of
from swift.hub.models import access
from swift.models.families import layout_for
from swift.models.info import ModelInfo, model_info, read_json, require_weights
from swift.models.processor import load_tokenizer
from swift.options.commands import Export
from swift.options.generation import GenerationOptions

FILE_NAME = "Modelfile"
UNSAID = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}
"""How transformers samples where a generation config says nothing."""
_THOUGHT = "wqThoughtzq"


def to_ollama(command: Export) -> Path:
    """Write the Modelfile of a model that stays where it is; the folder it went to, absolute."""
    info = model_info(command.model, access(command.general))
    require_weights(info)
    output = output_folder(command.export.output_dir, info.path, info.name)
    require_free(output, exist_ok=command.export.exist_ok, inputs=(info.path,))
    with appearing(output) as folder:
        write_modelfile(command, info, folder, model=str(info.path))
    tell(output)
    return output


def output_folder(output_dir: str | None, source: Path, name: str) -> Path:
    """Where it goes, absolute: `--output_dir`, else beside the model, its name with `-ollama` behind it."""
    if output_dir is not None:
        return Path(output_dir).expanduser().resolve()
    return source.with_name(f"{name}-ollama")


def tell(folder: Path) -> None:
    """Say what to do with what was written."""
    get_logger().info("Modelfile: %s", folder / FILE_NAME)
    get_logger().info("try it: ollama create my-model -f %s && ollama run my-model", folder / FILE_NAME)


def write_modelfile(command: Export, info: ModelInfo, folder: Path, *, model: str) -> None:
    """Write the Modelfile of a model into a folder.

    info: of the model, without adapters. model: its folder as FROM names it: absolute, or as seen from the Modelfile.
    Raises UsageError and RunError when its prompts cannot be written in the template language of Ollama.
    """
    if not command.template.use_chat_template:
        raise UsageError(
            "--to_ollama writes a chat template, and --use_chat_template false has none. Drop one of them."
        )
    tokenizer = load_tokenizer(info)
    renderers = _renderers(command, info, tokenizer)
    prompts = _prompts(renderers, tokenizer)
    system = prompts.turns.default_system
    said = {think: _text_of(renderer) for think, renderer in renderers.items()}
    count = require_same(template_of(prompts), system, said, takes_system=prompts.turns.system is not None)
    get_logger().info("%d prompts of Ollama's template equal those of the model", count)
    bos = _added_bos(info)
    turns = without_bos(prompts.turns, bos)
    template = template_of(Prompts(turns, prompts.generations, thinks=prompts.thinks))
    parameters = [
        *(("stop", word) for word in dict.fromkeys((*renderers[None].stop_words, *command.generation.stop_words))),
        *sampling(command.generation, _saved_sampling(info)),
        *([("num_ctx", command.model.max_model_len)] if command.model.max_model_len else []),
    ]
    notes = [*_notes(command, info, renderers[None])]
    if turns != prompts.turns:
        notes.append(f"Ollama puts {bos} in front of every prompt by itself, so that the template does not.")
    text = Modelfile(model, template, system, parameters, notes).text()
    (folder / FILE_NAME).write_text(text, encoding="utf-8")


def sampling(options: GenerationOptions, saved: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """How replies are sampled, by the options and else by the model's generation config, in the words of Ollama."""
    samples = saved.get("do_sample", False) if options.temperature is None else options.temperature > 0
    given = {name: getattr(options, name) for name in UNSAID}
    value = {name: {**UNSAID, **saved}[name] if given[name] is None else given[name] for name in UNSAID}
    if samples:
        yield from (("temperature", value["temperature"]), ("top_k", value["top_k"]), ("top_p", value["top_p"]))
    else:
        yield ("temperature", 0)
    yield ("repeat_penalty", value["repetition_penalty"])
    if options.max_new_tokens is not None:
        yield ("num_predict", options.max_new_tokens)


def _renderers(command: Export, info: ModelInfo, tokenizer: PreTrainedTokenizerBase) -> dict[bool | None, Renderer]:
    """The renderer of the command under None; where its template knows thinking on and off, those under True and False."""

    def made(thinking: bool | None) -> Renderer:
        options = command.template.model_copy(update={"enable_thinking": thinking})
        return Renderer(tokenizer, options, layout=layout_for(info, options, tokenizer))

    plain = made(command.template.enable_thinking)
    if plain.chat_template is None or "think" not in plain.chat_template:
        return {None: plain}
    both = {None: plain, True: made(True), False: made(False)}
    asked = Conversation((Message("user", "Hello"),))
    return both if both[True].prompt(asked) != both[False].prompt(asked) else {None: plain}


def _prompts(renderers: Mapping[bool | None, Renderer], tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """The layout of the renderers."""

    def closed(conversation: Conversation) -> str:
        messages = [message.as_dict() for message in conversation.messages]
        template = renderers[None].chat_template
        text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        assert isinstance(text, str), "nothing is tokenized"
        return text

    made = {think: turns_of(_text_of(renderer), closed) for think, renderer in renderers.items()}
    if len(made) == 1:
        return Prompts(made[None])
    return Prompts(made[None], (made[True].generation, made[False].generation), thinks=_forgets(renderers[None]))


def _forgets(renderer: Renderer) -> bool:
    """Whether what was thought in past replies is left out of prompts."""
    reply = Message("assistant", f"<think>\n{_THOUGHT}\n</think>\n\nYes.")
    said = (Message("user", "Hello?"), reply, Message("user", "Bye."))
    return _THOUGHT not in renderer.prompt(Conversation(said)).text


def _text_of(renderer: Renderer) -> Render:
    return lambda conversation: renderer.prompt(conversation).text


def _added_bos(info: ModelInfo) -> str:
    """The token that Ollama puts in front of every prompt, as it reads it from tokenizer_config.json; "" for none."""
    path = info.path / "tokenizer_config.json"
    about = read_json(path) if path.is_file() else {}
    token = about.get("bos_token") or ""
    return (token if isinstance(token, str) else token["content"]) if about.get("add_bos_token") else ""


def _saved_sampling(info: ModelInfo) -> dict[str, Any]:
    """What the generation config of a model says, without what it says of nothing."""
    path = info.path / "generation_config.json"
    saved = read_json(path) if path.is_file() else {}
    return {name: value for name, value in saved.items() if value is not None}


def _notes(command: Export, info: ModelInfo, renderer: Renderer) -> Iterator[str]:
    """What the reader of the file should know."""
    yield "Written by swift export --to_ollama true. Use it: ollama create NAME -f Modelfile"
    if command.model.max_model_len is None and info.max_length is not None:
        yield f"Ollama's context is short unless said otherwise; this model bears: PARAMETER num_ctx {info.max_length}"
    if "strftime_now" in (renderer.chat_template or ""):
        yield "The template names the date, which is that of the export."
        get_logger().warning("The chat template names the date; in the Modelfile it stays that of today.")
