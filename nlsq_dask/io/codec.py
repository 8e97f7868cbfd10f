"""Numbers as JSON values that read back to the same bits.

They are written in the shortest form (Python's ``repr``), those that are not finite as text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def to_json(value: Any) -> Any:
    """Write arrays and numbers as JSON values that read back to the same bits."""
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(item) for item in value]
    if isinstance(value, float | np.floating):
        number = float(value)
        return number if math.isfinite(number) else repr(number)
    if isinstance(value, np.integer):
        return int(value)
    return value
