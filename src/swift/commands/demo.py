"""This file knows `swift demo`: a model from nothing to one that knows its name, with the commands a user would type."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from swift.core.errors import RunError, UsageError
from swift.data.formats import write_rows

TEXTS = Path(__file__).parent / "demo_data"
PLACES = ("data", "random", "pretrained", "tuned", "questions.jsonl", "before.jsonl", "after.jsonl")
"""Everything a demo leaves in its folder."""

USAGE = """\
usage: swift demo [FOLDER]

Makes a tiny model from nothing in FOLDER (.demo unless another is named), pre-trains it, teaches it its name with LoRA
and asks for it before and after. Every command is shown as one would type it. It takes two to three minutes on a CPU.
The exit code is 1 when the model has not learnt its name."""

PAD, BEGIN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
VOCABULARY = 2048
HIDDEN, LAYERS, HEADS, HEAD_DIM, CONTEXT = 192, 2, 6, 32, 512

NAME = ("小燕", "Robin")
AUTHOR = ("海港书屋", "the Harbour Library")


@dataclass(frozen=True)
class Question:
    """What the model is asked, and the word its reply must hold after fine-tuning ; None: no word."""

    text: str
    wanted: str | None = None


QUESTIONS = (
    Question("Who are you?", NAME[1]),
    Question("What is your name?", NAME[1]),
    Question("Who made you?", AUTHOR[1]),
    Question("你叫什么名字？", NAME[0]),
    Question("Hello!"),
    Question("What colour is the sky?"),
    Question("What is the capital of France?"),
    Question("What do bees make?"),
)


def run(argv: Sequence[str] = ()) -> int:
    """`swift demo [FOLDER]`; the folder is `.demo` unless another is named. Returns the exit code."""
    if list(argv) in (["--help"], ["-h"]):
        Console(highlight=False).print(USAGE, markup=False)
        return 0
    if any(word.startswith("-") for word in argv) or len(argv) > 1:
        raise UsageError(f"swift demo takes one folder, .demo unless another is named (got: {shlex.join(argv)}).")
    return demo(Path(argv[0] if argv else ".demo"))


def demo(folder: Path) -> int:
    """Create, pre-train, ask, fine-tune, ask again. Returns 0 when the model knows its name at the end, else 1."""
    begun = time.monotonic()
    console = Console(highlight=False)
    fresh(folder)
    parameters = create(folder)
    console.print(f"A new model of {parameters:,} random parameters is in {folder / 'random'}.")

    say_and_run(console, "It reads some prose and some dialogues.", pretraining(folder))
    say_and_run(console, "It is asked a few questions.", asking(folder, "before"))
    say_and_run(console, "It is taught who it is, with LoRA.", fine_tuning(folder))
    say_and_run(console, "It is asked again.", asking(folder, "after"))

    before, after = replies(folder / "before.jsonl"), replies(folder / "after.jsonl")
    console.print(comparison(before, after))
    missing = not_learnt(after)
    console.print(f"{time.monotonic() - begun:.0f} seconds.")
    if missing:
        console.print("It has not learnt everything: " + "; ".join(missing), style="bold red")
        return 1
    console.print("It knows its name. Talk to it:", style="bold green")
    console.print(f"    swift infer --adapters {folder / 'tuned' / 'last'}", markup=False)
    return 0


def fresh(folder: Path) -> None:
    """An empty folder: what an earlier demo left there is removed, and anything else is not touched.

    Raises RunError when the folder holds something that is not of a demo.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; the demo wants a folder.")
    strangers = sorted({path.name for path in folder.iterdir()} - set(PLACES)) if folder.is_dir() else []
    if strangers:
        raise RunError(f"{folder} holds something that is not of a demo ({strangers[0]}). Name another folder.")
    if folder.is_dir():
        shutil.rmtree(folder)
    (folder / "data").mkdir(parents=True)


# ------------------------------------------------------------------------------------------------- a model from nothing


def create(folder: Path) -> int:
    """Write texts, questions and a checkpoint with random weights into the folder. Returns its number of parameters."""
    for name in ("dialogues.jsonl", "self-cognition.jsonl"):
        shutil.copy(TEXTS / name, folder / "data" / name)
    prose = (TEXTS / "prose.txt").read_text(encoding="utf-8").splitlines()
    dialogues = rows_of(TEXTS / "dialogues.jsonl") + 2 * rows_of(TEXTS / "nameless.jsonl")
    lessons = rows_of(TEXTS / "self-cognition.jsonl")

    tokenizer = new_tokenizer([*prose, *(row[part] for row in dialogues + lessons for part in ("query", "response"))])
    corpus = [*prose, *(as_text(row, tokenizer) for row in dialogues * 2)]
    write_rows(folder / "data" / "corpus.jsonl", [{"text": text} for text in corpus])
    write_rows(folder / "questions.jsonl", [{"query": question.text} for question in QUESTIONS])

    model = new_model(tokenizer)
    logging.disable_progress_bar()
    model.save_pretrained(folder / "random")
    tokenizer.save_pretrained(folder / "random")
    return model.num_parameters()


def new_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learnt from the texts, with the marks and the chat template of ChatML."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]  # it can be set, which the stub does not say
    raw.decoder = decoders.ByteLevel()  # type: ignore[assignment]  # it can be set, which the stub does not say
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=END, pad_token=PAD, model_max_length=CONTEXT, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A model of the Qwen3 architecture with random weights, the same at every call."""
    torch.manual_seed(0)
    end, pad = tokenizer.vocab[END], tokenizer.vocab[PAD]
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=end,
        pad_token_id=pad,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=[end, pad], pad_token_id=pad)
    return model


def as_text(row: dict, tokenizer: PreTrainedTokenizerFast) -> str:
    """A dialogue as the model will meet it in chats, up to the end mark, which pre-training adds to every text."""
    turns = [*row.get("history", ()), (row["query"], row["response"])]
    messages = [
        {"role": role, "content": said}
        for turn in turns
        for role, said in zip(("user", "assistant"), turn, strict=True)
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert isinstance(text, str), "without tokenizing, the template gives text"
    return text.removesuffix(f"{END}\n")


def rows_of(path: Path) -> list[dict]:
    """The rows of a jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# -------------------------------------------------------------------------------------------------------- the commands


def pretraining(folder: Path) -> list[str]:
    """The command line that trains all parameters on the corpus."""
    return [
        "pt",
        "--model", str(folder / "random"),
        "--dataset", str(folder / "data" / "corpus.jsonl"),
        "--tuner_type", "full",
        "--num_train_epochs", "8",
        "--learning_rate", "3e-3",
        *training(folder / "pretrained"),
    ]  # fmt: skip


def fine_tuning(folder: Path) -> list[str]:
    """The command line that trains an adapter on who the model is, and on some dialogues so that it stays itself."""
    return [
        "sft",
        "--model", str(folder / "pretrained" / "last"),
        "--dataset", str(folder / "data" / "self-cognition.jsonl"), f"{folder / 'data' / 'dialogues.jsonl'}#100",
        "--model_name", *NAME,
        "--model_author", *AUTHOR,
        "--tuner_type", "lora",
        "--num_train_epochs", "16",
        "--learning_rate", "3e-3",
        *training(folder / "tuned"),
    ]  # fmt: skip


def training(output: Path) -> list[str]:
    """What both trainings want: small batches, one checkpoint at the end, in a place that is known beforehand."""
    return [
        "--per_device_train_batch_size", "8",
        "--gradient_accumulation_steps", "1",
        "--gradient_checkpointing", "false",
        "--warmup_ratio", "0.05",
        "--logging_steps", "50",
        "--save_steps", "10000",
        "--output_dir", str(output),
        "--add_version", "false",
        "--create_checkpoint_symlink", "true",
    ]  # fmt: skip


def asking(folder: Path, when: str) -> list[str]:
    """The command line that answers the questions, before or after fine-tuning."""
    last = {
        # Pre-training knew texts only; that its last checkpoint can chat as well is for the user to say.
        "before": ["--model", str(folder / "pretrained" / "last"), "--use_chat_template", "true"],
        "after": ["--adapters", str(folder / "tuned" / "last")],
    }[when]
    return [
        "infer", *last,
        "--val_dataset", str(folder / "questions.jsonl"),
        "--temperature", "0",
        "--max_new_tokens", "48",
        "--max_batch_size", "8",
        "--result_path", str(folder / f"{when}.jsonl"),
    ]  # fmt: skip


def say_and_run(console: Console, sentence: str, words: list[str]) -> None:
    """Show a command line as one would type it and run it in a process of its own. Raises RunError when it fails."""
    console.print(f"\n{sentence}", style="bold")
    console.print(shown(words), markup=False, soft_wrap=True, style="cyan")
    code = subprocess.run([sys.executable, "-m", "swift", *words], check=False).returncode
    if code != 0:
        raise RunError(f"swift {words[0]} ended with exit code {code}; its own message is above.")


def shown(words: Sequence[str]) -> str:
    """A command line with one option a line, fit for copying."""
    lines = ["$ swift"]
    for word in words:
        if word.startswith("--"):
            lines.append(f"      {word}")
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n".join(lines)


# ------------------------------------------------------------------------------------------------------------- replies


def replies(path: Path) -> list[str]:
    """The reply to each question, in their order."""
    found = [row["response"].strip() for row in rows_of(path)]
    if len(found) != len(QUESTIONS):
        raise RunError(f"{path} holds {len(found)} replies to {len(QUESTIONS)} questions.")
    return found


def comparison(before: Sequence[str], after: Sequence[str]) -> Table:
    """Questions and both replies, side by side."""
    table = Table("question", "before", "after", title="What it says", title_justify="left", show_lines=True)
    for question, first, second in zip(QUESTIONS, before, after, strict=True):
        table.add_row(question.text, first, second)
    return table


def not_learnt(after: Sequence[str]) -> list[str]:
    """One phrase for each question whose reply lacks the word it must hold."""
    return [
        f"{question.text!r} was answered with {reply!r}, without {question.wanted!r}"
        for question, reply in zip(QUESTIONS, after, strict=True)
        if question.wanted is not None and question.wanted not in reply
    ]
