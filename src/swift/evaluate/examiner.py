"""This file knows the examiner: a process in which EvalScope runs benchmarks, and asks for every answer through its pipes.

It is a process of its own because EvalScope sets the seeds, the logging and the threads of the one it runs in. Each line
of its input and output is a JSON object:

    in    {"benchmarks": [...], "limit": 100, ...}         first of all, what to do
          {"number": 7, "text": "...", ...}                an answer
    out   {"number": 7, "messages": [...], ...}            a question
          {"benchmark": "gsm8k", "scores": {"": 0.5}}      what came of a benchmark, or with "failure" why nothing did
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from itertools import count
from typing import Any, TextIO

from swift.core.extras import need
from swift.core.registry import nearest

WHY = "--eval_use_evalscope true"
PLAIN = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "num_beams",
    "seed",
    "stop_seqs",
    "do_sample",
)
"""What of EvalScope's settings of a generation is passed on."""
IMPOSSIBLE = ("logit_bias", "logprobs", "top_logprobs", "response_schema")
"""Settings without which the answer would be another one, and which are not passed on."""


class Desk:
    """Where questions are put and answers come back, whichever thread asks."""

    def __init__(self, given: TextIO, said: TextIO) -> None:
        self._given = given
        self._said = said
        self._numbers = count()
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[dict[str, Any]]] = {}

    def task(self) -> dict[str, Any]:
        """The first line."""
        return json.loads(self._given.readline())

    def listen(self) -> None:
        """Hear answers from now on; when nobody is there any more to give them, end this process."""
        threading.Thread(target=self._hear, daemon=True).start()

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Put a question and wait for its answer."""
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = future
        self.say({"number": number, **question})
        return future.result()

    def say(self, message: Mapping[str, Any]) -> None:
        """Write one line."""
        line = json.dumps(message, ensure_ascii=False) + "\n"
        with self._lock:
            self._said.write(line)
            self._said.flush()

    def _hear(self) -> None:
        for line in self._given:
            answer = json.loads(line)
            with self._lock:
                future = self._waiting.pop(answer["number"])
            future.set_result(answer)
        os._exit(1)  # threads wait for answers, so nothing else ends them


def main() -> None:
    """Run the benchmarks of the task, one after the other, so that one that fails costs no other its score."""
    said = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what anybody prints is no line of ours
    desk = Desk(sys.stdin, said)
    task = desk.task()
    if task.get("only_names"):
        desk.say({"unknown": unknown(task["benchmarks"])})
        return
    desk.listen()
    api = asking(desk, task["model"])
    for name in task["benchmarks"]:
        try:
            desk.say({"benchmark": name, "scores": examine(name, task, api)})
        except Exception as error:  # noqa: BLE001 (a benchmark may fail in any way, and the others go on)
            sys.excepthook(type(error), error, error.__traceback__)
            desk.say({"benchmark": name, "failure": f"{type(error).__name__}: {error}"})


def unknown(names: Sequence[str]) -> dict[str, list[str]]:
    """The names that are no benchmarks, each with what it may have meant."""
    need("evalscope", WHY)
    registry = need("evalscope.api.registry", WHY).BENCHMARK_REGISTRY
    return {name: nearest(name, list(registry.list_keys()), count=3) for name in names if name not in registry}


def examine(name: str, task: Mapping[str, Any], api: Any) -> dict[str, float]:
    """The scores of one benchmark: its main one under "", and every metric under its own name where it has several."""
    evalscope = need("evalscope", WHY)
    config = evalscope.TaskConfig(
        model=api, model_id=task["model"], eval_type="custom", datasets=[name],
        dataset_args={name: task["settings"].get(name, {})}, dataset_hub=task["hub"], limit=task["limit"],
        generation_config=dict(task["generation"]), eval_batch_size=task["at_once"], seed=task["seed"],
        work_dir=task["folder"], no_timestamp=True, collect_perf=False,
    )  # fmt: skip
    report = evalscope.run_task(config)[name]
    metrics = {metric.name: float(metric.score) for metric in report.metrics}
    if report.score is None:
        raise RuntimeError(f"it reports no main score, only {', '.join(metrics) or 'nothing'}")
    return {"": float(report.score), **(metrics if len(metrics) > 1 else {})}


def asking(desk: Desk, name: str) -> Any:
    """The model as EvalScope sees it: whatever it is asked goes to the desk."""
    base = need("evalscope.api.model", WHY).ModelAPI

    class Asking(base):  # type: ignore[misc,valid-type]  # a class that is imported when it is needed
        """A model behind a desk."""

        def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
            """One answer."""
            answer = desk.ask(question(input, tools, tool_choice, config))
            if answer["problem"] is not None:
                raise RuntimeError(answer["problem"])
            return output(answer, name)

    return Asking(name)


def question(messages: Sequence[Any], tools: Sequence[Any], tool_choice: Any, config: Any) -> dict[str, Any]:
    """What is asked, as JSON. Raises ValueError for what cannot be passed on."""
    settings = config.model_dump(exclude_none=True)
    refused = [name for name in IMPOSSIBLE if settings.get(name)]
    if refused:
        raise ValueError(f"the benchmark asks for {', '.join(refused)}, which is not available while training")
    if not isinstance(tool_choice, str) or tool_choice == "any":
        raise ValueError(
            "the benchmark wants the model to be made to call a tool, which is not available while training"
        )
    return {
        "messages": [row for message in messages for row in rows(message)],
        "tools": [{"type": "function", "function": tool.model_dump(exclude_none=True)} for tool in tools],
        "sampling": {name: settings[name] for name in PLAIN if name in settings},
    }


def rows(message: Any) -> list[dict[str, str]]:
    """A message of EvalScope in the roles of a row of ours."""
    parts = [] if isinstance(message.content, str) else message.content
    media = sorted({part.type for part in parts} - {"text", "reasoning"})
    if media:
        raise ValueError(f"the benchmark shows {', '.join(media)}, and the model is asked in text alone")
    if message.role == "tool":
        return [{"role": "tool_response", "content": message.text}]
    calls = (message.tool_calls or []) if message.role == "assistant" else []
    said = [{"role": message.role, "content": message.text}] if message.text or not calls else []
    called = [{"name": call.function.name, "arguments": call.function.arguments} for call in calls]
    return said + [{"role": "tool_call", "content": json.dumps(call, ensure_ascii=False)} for call in called]


def output(answer: Mapping[str, Any], name: str) -> Any:
    """An answer as EvalScope wants it."""
    api = need("evalscope.api.model", WHY)
    chat = need("evalscope.api.messages", WHY)
    tool = need("evalscope.api.tool", WHY)
    calls = [
        tool.ToolCall(id=f"call_{number}", function=tool.ToolFunction(name=call["name"], arguments=call["arguments"]))
        for number, call in enumerate(answer["calls"])
    ]
    content = [chat.ContentText(text=answer["text"])]
    if answer["reasoning"]:
        content.insert(0, chat.ContentReasoning(reasoning=answer["reasoning"]))
    reasons = {"stop": "stop", "length": "max_tokens", "too_long": "model_length"}
    message = chat.ChatMessageAssistant(content=content, tool_calls=calls or None, model=name, source="generate")
    used = {"input_tokens": answer["prompt_tokens"], "output_tokens": answer["generated_tokens"]}
    return api.ModelOutput(
        model=name,
        choices=[
            api.ChatCompletionChoice(
                message=message, stop_reason="tool_calls" if calls else reasons[answer["finish_reason"]]
            )
        ],
        usage=api.ModelUsage(**used, total_tokens=sum(used.values())),
    )


if __name__ == "__main__":
    main()
