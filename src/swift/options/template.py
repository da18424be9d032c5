"""This file knows the options of the template: how conversations become tokens, and how many."""

from typing import Literal

from pydantic import PositiveInt

from swift.options.conditions import command, equals, given
from swift.options.declare import Options, option
from swift.options.model import MULTIMODAL

TRAINS = command("pt", "sft", "rlhf", "web-ui")
TOKENIZES_TO_TRAIN = TRAINS | command("parity") | given("to_cached_dataset")
ANSWERS = (
    command("infer", "deploy", "rollout", "eval", "app", "parity", "sample", "web-ui")
    | given("predict_with_generate")
    | equals("rlhf_type", "ppo", "grpo", "gkd")
)


class TemplateOptions(Options):
    """How conversations become tokens."""

    template: str | None = option(None, important=True)
    """Name of the layout of conversations. When not given: the checkpoint's own chat template, or the
    layout of its family where it has none."""
    system: str | None = option(None, important=True, rule="the template default system")
    """System prompt of conversations that bring none of their own: text, or a .txt file."""
    max_length: PositiveInt | None = option(None, important=True)
    """Most tokens of one row; what is longer is treated by `--truncation_strategy`. The model's own limit when not
    given. In PPO, GRPO, GKD and inference it limits the prompt alone."""
    truncation_strategy: Literal["delete", "left", "right", "split"] | None = option(
        "delete", rule="delete; left for grpo and gkd"
    )
    """What happens to rows longer than `--max_length`: left out (and counted), cut at the left, cut at the right, or
    split into several rows (only `swift pt`)."""
    max_pixels: PositiveInt | None = option(None, important=True, later=MULTIMODAL)
    """Most pixels (height times width) of an image; larger ones are scaled down. For every model of images, unlike
    the knob MAX_PIXELS of some families."""
    agent_template: str | None = option(None, important=True)
    """How tools, tool calls and tool responses are written in a conversation, and how calls are read from a reply.
    When not given: as the checkpoint's chat template writes them or, where it writes none, as `--template` does."""
    norm_bbox: Literal["norm1000", "none"] | None = option(None, later=MULTIMODAL)
    """How coordinates of boxes are scaled: to thousandths of the image, or not at all. Chosen by the model when not
    given; images that were resized are accounted for."""
    use_chat_template: bool = True
    """Whether messages are set in the chat template, or merely joined as plain text. `swift pt` joins."""
    padding_side: Literal["left", "right"] = option("right", when=TRAINS)
    """Side at which the shorter rows of a training batch are padded; left by default for PPO and GKD. Inference
    always pads at the left."""
    padding_free: bool = option(False, important=True, when=TRAINS)
    """Whether the rows of a batch are laid end to end instead of padded. Rows still cannot see each other; memory and
    time go down."""
    loss_scale: str = option("default", important=True, when=TOKENIZES_TO_TRAIN)
    """How much each token counts in the loss: a base strategy (`default`: every reply; `last_round`: what follows the
    last user message; `all`: every token) and refinements joined by +, such as `default+ignore_empty_think`: hermes, react, qwen, agentflan,
    alpha_umi, ignore_empty_think, ignore_think_prefix, JSON files or text with patterns, and those of plugins."""
    sequence_parallel_size: PositiveInt = option(1, when=TRAINS)
    """Number of processes that share each row, so that each holds a part of a long one: by heads as far as the
    key-value heads divide (Ulysses), the rest in a ring. Rows are laid end to end, as with `--padding_free`. The number
    of processes must be a multiple of it."""
    template_backend: Literal["swift", "jinja"] = "swift"
    """Who prepares messages: `swift` applies its rules for thinking and history first, `jinja` hands them untouched
    to the checkpoint's chat template."""
    response_prefix: str | None = option(None, when=ANSWERS | given("to_ollama"))
    """Text every reply begins with when the model answers. By default the thinking prefix that `--enable_thinking`
    and the template call for."""
    enable_thinking: bool | None = None
    """Whether the model thinks before it answers; by default it does where its template can. Also decides whether
    past thinking is left out of conversations. `--response_prefix` goes before it."""
    add_non_thinking_prefix: bool = option(True, when=TOKENIZES_TO_TRAIN)
    """Whether, in training, replies without thinking get the empty thinking block of models that can do both. With
    the base strategy last_round only after the last user message, else in every round."""
