"""What it means that two fits ended in the same bits."""

from __future__ import annotations

import numpy as np

# How a fit ended. How it was run (strategy, directory, memory of the day) is no part of it.
EXACT = (
    "names",
    "cost",
    "chi2",
    "n_points",
    "optimality",
    "nfev",
    "njev",
    "nit",
    "n_passes",
    "status",
    "tolerances",
    "history",
)


def assert_same_result(result, expected):
    for name in EXACT:  # by what is printed: all digits, and one NaN is as another
        assert repr(getattr(result, name)) == repr(getattr(expected, name)), name
    for name in ("popt", "pcov", "active_mask"):
        mine, theirs = getattr(result, name), getattr(expected, name)
        assert mine.dtype == theirs.dtype, name
        assert mine.tobytes() == theirs.tobytes(), name
    assert len(result.starts) == len(expected.starts)
    for mine, theirs in zip(result.starts, expected.starts, strict=True):
        for name, value in vars(theirs).items():
            np.testing.assert_array_equal(getattr(mine, name), value, err_msg=name)
