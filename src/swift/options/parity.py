"""This file knows the options of `swift parity`: what is compared, and which server is asked."""

from pydantic import NonNegativeFloat, PositiveInt

from swift.options.conditions import given
from swift.options.declare import Options, option

SERVED = given("url")


class ParityOptions(Options):
    """What was trained held against what answers."""

    url: str | None = option(None, important=True)
    """Address of a running OpenAI-compatible server, e.g. `http://localhost:8000/v1`. When not given, only what is local is
    compared."""
    api_key: str | None = option(None, when=SERVED)
    """Key that the server asks for."""
    served_model_name: str | None = option(
        None, when=SERVED, rule="the only model it lists, or the name of the adapter"
    )
    """Name of the model on the server."""
    rows: PositiveInt = option(8, important=True)
    """Most conversations that are compared, from the beginning of the data."""
    tokens: PositiveInt = 16
    """Tokens of a reply that are compared."""
    tolerance: NonNegativeFloat | None = option(None, rule="what rounding to torch_dtype explains")
    """How far log-probabilities may be apart on average. A single one may be ten times as far."""
    report: str | None = None
    """File the findings are also written to."""
