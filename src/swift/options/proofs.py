"""This file knows the options of proofs: looking at a run before it begins."""

from swift.options.conditions import given
from swift.options.declare import Options, option


class ProofOptions(Options):
    """Looking at a run before it begins."""

    dry_run: bool = False
    """Whether the run is only checked: nothing is trained, no weights are loaded, and a page says what would happen
    and what is wrong. `swift check` does the same."""
    html: str | None = option(None, when=given("dry_run"))
    """File that the page of the check is also written to, as HTML for a browser."""
