"""This file knows the options of answering: `swift infer`, the server of `swift deploy`, and the web pages."""

from typing import Annotated, Literal

from pydantic import AfterValidator, PositiveInt

from swift.options.conditions import command, equals, given
from swift.options.data import HAS_ROWS
from swift.options.declare import Options, Unfit, option
from swift.options.model import MULTIMODAL

ROWS_INFERRED = command("infer") & HAS_ROWS


def _positive_or_all(value: int) -> int:
    if value == -1 or value > 0:
        return value
    raise Unfit("must be a whole number of at least 1, or -1", "必须为不小于 1 的整数，或 -1")


PositiveOrAll = Annotated[int, AfterValidator(_positive_or_all)]
"""A whole number of at least 1, or -1 for no limit."""


class InferOptions(Options):
    """Inference over data sets and in a dialogue."""

    infer_backend: Literal["transformers", "vllm", "sglang", "lmdeploy"] = option("transformers", important=True)
    """Engine that generates. All of them speak the same template."""
    max_batch_size: PositiveOrAll = option(1, important=True, when=equals("infer_backend", "transformers"))
    """Most prompts in a batch of the transformers engine; -1 does not limit."""
    result_path: str | None = option(None, important=True, rule="in the checkpoint folder, else ./result")
    """File the results are added to, as jsonl."""
    write_batch_size: PositiveOrAll = option(1000, when=ROWS_INFERRED)
    """Rows after which results are written; -1 writes once at the end."""
    resume: bool = option(False, when=ROWS_INFERRED & given("result_path"))
    """Go on behind the rows that `--result_path` holds already, which must be the first of these rows; each row is
    answered once, however often the run was stopped."""
    metric: Literal["acc", "rouge"] | None = option(None, when=ROWS_INFERRED)
    """How results are compared with the reference replies; not at all when not given."""
    val_dataset_sample: PositiveInt | None = option(None, when=ROWS_INFERRED)
    """Number of rows drawn from the data; all when not given."""
    reranker_use_activation: bool = option(True, when=equals("task_type", "reranker", "generative_reranker"))
    """Whether the score of a reranker goes through a sigmoid."""


class DeployOptions(Options):
    """The OpenAI-compatible server."""

    host: str = "0.0.0.0"
    """Address the server listens on; 0.0.0.0 is all of this machine's."""
    port: int = option(8000, ge=1, le=65535)
    """Port the server listens on. One that is taken is an error; no other is tried."""
    api_key: str | None = option(None, min_length=1)
    """Key a client must show for everything but /health and /ping; none is asked for when not given."""
    require_auth: bool = False
    """Whether a server without `--api_key` is refused. Otherwise one that others can reach is warned of."""
    owned_by: str = "swift"
    """Owner of the model in the list of models."""
    served_model_name: str | None = option(None, important=True, rule="last part of model")
    """Name under which the model is served."""
    verbose: bool | None = option(None, rule="true; false for app and eval")
    """Whether each request is logged."""
    log_interval: PositiveOrAll = 20
    """Seconds between two reports of throughput; -1 reports none."""
    max_logprobs: PositiveInt = 20
    """Most log-probabilities per token a client may ask for."""
    max_requests: PositiveOrAll = 1024
    """Most requests that are answered or wait at a time; further ones get status 429. -1 does not limit."""
    max_body_size: PositiveInt = 32
    """Most mebibytes of a request; larger ones get status 413."""
    media_hosts: list[str] = option([], later=MULTIMODAL)
    """Hosts from which images, video and audio may be fetched: names, `.example.com` with all below it, or `*`."""
    media_folders: list[str] = option([], later=MULTIMODAL)
    """Folders of this machine from which a request may name files."""
    allow_private_media: bool = option(False, when=given("media_hosts"), later=MULTIMODAL)
    """Whether media may be fetched from addresses of private networks and of this machine."""


class WebOptions(Options):
    """Where a web page is served."""

    server_name: str = "0.0.0.0"
    """Host the page is served on."""
    server_port: PositiveInt = 7860
    """Port the page is served on."""
    share: bool = False
    """Whether the page gets a public address."""
    lang: Literal["zh", "en"] = "zh"
    """Language of the page."""


class AppOptions(Options):
    """The chat page."""

    base_url: str | None = None
    """Address of a served model, e.g. `http://localhost:8000/v1`. When not given, `--model` is served here."""
    studio_title: str | None = option(None, rule="the model name")
    """Title of the page."""
    is_multimodal: bool | None = option(None, rule="from the model", later=MULTIMODAL)
    """Whether the page takes images, video and audio; decided by the model when not given, and false where that
    cannot be told."""
