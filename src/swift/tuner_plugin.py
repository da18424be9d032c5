"""This file knows the public names for tuners of one's own: register a class, name it in --tuner_type.

from swift.tuner_plugin import PeftTuner, tuners_map

tuners_map["mine"] = MyTuner
"""

from __future__ import annotations

from swift.catalog.tuners import TUNERS as tuners_map  # noqa: N811 (the public name)
from swift.tuners.plugin import PeftTuner, Tuner

__all__ = ["PeftTuner", "Tuner", "tuners_map"]
