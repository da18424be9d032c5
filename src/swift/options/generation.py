"""This file knows the options of generation: how replies are sampled, stopped and shown."""

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from swift.options.conditions import command, given
from swift.options.declare import Fraction, Options, option
from swift.options.template import ANSWERS

SERVES = command("infer", "deploy", "rollout", "eval", "app", "sample", "web-ui")
GENERATES = ANSWERS | given("to_ollama")


class GenerationOptions(Options):
    """How replies are sampled."""

    max_new_tokens: PositiveInt | None = option(
        None, important=True, when=SERVES | given("predict_with_generate", "to_ollama")
    )
    """Most tokens of a reply; not given: as many as the model has room for."""
    temperature: NonNegativeFloat | None = option(None, when=GENERATES)
    """Randomness of sampling; 0 always takes the likeliest token. Read from generation_config.json when not given."""
    top_k: NonNegativeInt | None = option(None, when=GENERATES)
    """Sample among this many likeliest tokens only. Read from generation_config.json when not given."""
    top_p: Fraction | None = option(None, when=GENERATES)
    """Sample among the likeliest tokens whose probabilities add up to this. Read from generation_config.json when
    not given."""
    repetition_penalty: PositiveFloat | None = option(None, when=GENERATES)
    """Factor by which tokens that were used before lose; 1 means none. Read from generation_config.json when not
    given."""
    num_beams: PositiveInt = option(1, when=GENERATES)
    """Number of beams of beam search."""
    stream: bool | None = option(None, important=True, when=SERVES, rule="true in a dialogue, false over a data set")
    """Whether a reply is shown while it is written."""
    stop_words: list[str] = option([], when=GENERATES)
    """Texts that end a reply, beside the end-of-sequence token. They stay in the reply; the token does not."""
    logprobs: bool = option(False, when=SERVES)
    """Whether the log-probability of every token of a reply is returned."""
    top_logprobs: NonNegativeInt | None = option(None, when=given("logprobs") | command("deploy", "app", "eval"))
    """How many of the likeliest tokens are returned at each position, with their log-probabilities."""
    structured_outputs_regex: str | None = option(None, when=SERVES)
    """Regular expression every reply is made to match."""
