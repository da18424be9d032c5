"""This file knows the options every command has: randomness, plugins, hubs, processes, Ray."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from swift.options.conditions import command, given
from swift.options.declare import Json, Options, option

RAY = given("use_ray")


class GeneralOptions(Options):
    """What every command knows: randomness, plugins, hubs, processes."""

    external_plugins: list[str] = option([], important=True)
    """Python files that are imported before anything is built. They register models, templates, data sets, rewards
    and other components of your own under names the other options can then use."""
    seed: NonNegativeInt = 42
    """Seed of everything random but the data, which has its own: `--data_seed`."""
    load_args: bool | None = option(None, rule="true for infer/export style commands, false for training")
    """Whether options that were not given are read from the args.json beside `--model`, `--adapters` or
    `--resume_from_checkpoint`, so that a trained checkpoint is used the way it was trained."""
    load_data_args: bool = False
    """Whether the data options are read from args.json too, e.g. to infer on the validation split of a training."""
    use_hf: bool = False
    """Whether models and data sets come from, and are pushed to, Hugging Face instead of ModelScope."""
    hub_token: str | None = None
    """Access token of the hub, for private or gated repositories."""
    ddp_timeout: PositiveInt = 18000000
    """Seconds after which a collective operation between processes counts as hung."""
    ddp_backend: Literal["nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl"] | None = None
    """Library by which processes talk to each other; chosen to fit the devices when not given."""
    ignore_args_error: bool = False
    """Whether unknown options are a warning instead of an error, as a notebook's own arguments need it."""
    config: str | None = None
    """A YAML or JSON file of options, name: value. Options on the command line win over the file."""
    use_ray: bool = option(False, when=command("pt", "sft"))
    """Whether the run is started on a Ray cluster: that of RAY_ADDRESS, or one that begins on this machine."""
    ray_exp_name: str | None = option(None, when=RAY)
    """Prefix of the names of the actors in the Ray cluster, and its namespace."""
    device_groups: Json | None = option(None, when=RAY)
    """Which devices do which part of the work: named groups of ranks and their workers, of which `default` trains.
    Required with `--use_ray`."""
