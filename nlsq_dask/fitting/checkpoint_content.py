"""The content of a checkpoint file, read with doubt.

A right checksum says that a file is as it was written. It does not say who wrote it: so each value
is read by its type, and arrays by the number of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.factor import Linearization
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.solver_state import SolverState
from nlsq_dask.io.codec import (
    check_shape,
    checksum,
    dumps,
    fields_from_json,
    floats_from_json,
    loads,
)
from nlsq_dask.results.earlier import CRITERIA
from nlsq_dask.results.record import PilotRecord, Start

FORMAT = "nlsq_dask checkpoint 5"
# The format of version 0.1. Its searches ended by another rule.
FORMAT_0_1 = "nlsq_dask checkpoint 4"


@dataclass(frozen=True, kw_only=True)
class Content:
    """The fields of a checkpoint file.

    Attributes
    ----------
    problem : dict
        Description of the fit, as JSON values.
    state : SolverState
    n_passes : int
    starts : tuple of Start
    pilot : PilotRecord or None
    digests : dict or None
    omitted : tuple of tuple of int
        Blocks that the fit has left out.
    groups : dict or None
        Sums of each group, as JSON values. They are read where they are used.
    versions : dict
        Versions of the libraries that wrote the file.
    """

    problem: dict[str, Any]
    state: SolverState
    n_passes: int
    starts: tuple[Start, ...]
    pilot: PilotRecord | None
    digests: dict[str, str] | None = None
    omitted: tuple[tuple[int, ...], ...] = ()
    groups: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)


def encode(content: str) -> bytes:
    """A file of a content in JSON, with its checksum."""
    return dumps({"sha256": checksum(content), "content": content}).encode()


def decode(raw: bytes) -> tuple[str, dict[str, Any]]:
    """Read the format and the values of a file whose checksum is right.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    envelope = loads(raw)
    match envelope:
        case {"sha256": str(digest), "content": str(text)}:
            if digest != checksum(text):
                raise ValueError(_errors.CHECKSUM_MISMATCH)
            content = loads(text)
        case _:
            raise _errors.value_of_another_kind(envelope, "a checksum and a content")
    match content:
        case {"format": str(form)}:
            return form, content
    raise _errors.value_of_another_kind(content, "a content with the name of its format")


def read_content(values: Mapping[str, Any], *, of_0_1: bool) -> Content:
    """Read the values of a file by their types.

    Raises
    ------
    KeyError, ValueError
        If a value is missing, of another type, or an array of another shape.
    """
    named = {name: value for name, value in values.items() if name != "format"}
    content = Content(**fields_from_json(Content, named))
    start = content.state.params
    if of_0_1 or "p0" in content.problem:
        start = floats_from_json(content.problem["p0"])
    size = start.size
    _check_state(content.state, size)
    for kept in content.starts:
        check_shape("p0", kept.p0, (size,))
        if kept.params is not None:
            check_shape("params", kept.params, (size,))
    if content.pilot is not None:
        check_shape("params", content.pilot.params, (size,))
    return replace(content, state=_judged(content.state, start)) if of_0_1 else content


def _check_state(state: SolverState, size: int) -> None:
    """Refuse a state of another number of parameters, or with numbers that no search has."""
    check_shape("params", state.params, (size,))
    check_shape("scale_inv", state.scale_inv, (size,))
    if state.sizes.shape != ():
        check_shape("sizes", state.sizes, (size,))
    check_linearization(state.linearization, size, state.scale_inv)
    for name in ("params", "cost", "scale_inv"):
        _check_finite(name, getattr(state, name))
    if state.status is None and not state.radius > 0.0:
        raise _errors.value_out_of_range("radius")
    if any(value < 0.0 for name, value in asdict(state.moments).items() if name != "mean"):
        raise _errors.value_out_of_range("moments")


def check_linearization(linear: Linearization, size: int, scale_inv: FloatArray) -> None:
    """Refuse a linearisation of another number of parameters, or with numbers that no fit has.

    Raises
    ------
    ValueError
    """
    at: Linearization | None = linear
    while at is not None:
        check_shape("r_factor", at.r_factor, (size, size))
        check_shape("qtr", at.qtr, (size,))
        check_shape("gradient", at.gradient, (size,))
        if at.downhill is not None:
            check_shape("downhill", at.downhill, (size,))
        if at.sandwich is not None:
            check_shape("sandwich", at.sandwich, (size, size))
        with np.errstate(all="ignore"):  # the factor in the scaled variables may overflow
            _check_finite("r_factor", at.r_factor / scale_inv)
        _check_finite("qtr", at.qtr)
        at = at.curved


def _check_finite(name: str, value: Any) -> None:
    if not np.isfinite(value).all():
        raise _errors.value_not_finite(name)


def _judged(state: SolverState, start: FloatArray) -> SolverState:
    """The state of a search of version 0.1, with what follows from its history and its start."""
    refused = list(takewhile(lambda record: not record.accepted, reversed(state.history)))
    met = state.status if state.status in CRITERIA else None
    return replace(state, sizes=np.abs(start), n_rejected=len(refused), met=met)
