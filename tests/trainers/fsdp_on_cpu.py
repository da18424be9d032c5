"""`swift` with FSDP2 on a CPU: accelerate knows FSDP on accelerators only, and says nothing when it leaves it out."""

from __future__ import annotations

import functools
import sys
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType


def allow() -> None:
    """Let processes of a CPU count as processes that FSDP can be used in."""
    original = AcceleratorState.__init__

    @functools.wraps(original)
    def init(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init  # type: ignore[method-assign]  # for this process alone


if __name__ == "__main__":
    allow()
    from swift import launch
    from swift.cli import main

    sys.exit(launch.leave(main()))
