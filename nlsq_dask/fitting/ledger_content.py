"""Answers of groups as JSON values, and the key of a question.

A key is made from the kind of a question, all its numbers, and the blocks that are left out. So an
answer is never taken for the answer to another question, or of other rows. What is read from a file
is checked: fields by their types, and arrays by the shapes that follow from the question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.core.questions import Answers, CostsAt, Several, SumsAt
from nlsq_dask.core.reflective import Box
from nlsq_dask.engines.partial import LostBlock
from nlsq_dask.fitting.checkpoint_content import check_linearization
from nlsq_dask.fitting.ledger_means import means_compared, means_from_json, means_to_json
from nlsq_dask.fitting.omitted import Blocks
from nlsq_dask.fitting.pilot import Pilot
from nlsq_dask.io.codec import (
    check_shape,
    checksum,
    dumps,
    fields_from_json,
    floats_from_json,
    from_json,
    to_json,
)
from nlsq_dask.questions.collapse import Means, MeansOf
from nlsq_dask.questions.question import AnyQuestion
from nlsq_dask.questions.sample import Sample, Thinned

FORMAT = "nlsq_dask ledger 1"

NO_BLOCKS: Blocks = frozenset()


def is_kept(question: AnyQuestion[Any]) -> bool:
    """Whether the answers to a question are kept: sums, costs, samples and means."""
    if isinstance(question, Several):
        return all(map(is_kept, question.questions))
    return isinstance(question, SumsAt | CostsAt | Thinned | MeansOf)


def key_of(question: AnyQuestion[Any], omitted: Blocks = NO_BLOCKS) -> str:
    """Key of a question to all blocks but some."""
    named = _named(question)
    return checksum(dumps([named, sorted(omitted)] if omitted else named))


def parts_of(question: AnyQuestion[Any]) -> list[str]:
    """Keys of the single questions of several."""
    if isinstance(question, Several):
        return [key for part in question.questions for key in parts_of(part)]
    return [key_of(question)]


def _named(question: Any) -> Any:
    """The kind and the values of a question, as JSON values."""
    name = type(question).__name__
    if isinstance(question, Several):
        return [name, *map(_named, question.questions)]
    return [name, {f.name: to_json(getattr(question, f.name)) for f in fields(question)}]


def encode(question: AnyQuestion[Any], answer: Any) -> str | None:
    """The JSON text of an answer; None for one that is not kept.

    Sums that are not finite are asked again: a damaged file must not end a fit with them.
    """
    value = _encoded(question, answer)
    return None if value is None else dumps(value)


def _encoded(question: AnyQuestion[Any], answer: Any) -> Any:
    if isinstance(question, Several):
        parts = [_encoded(q, a) for q, a in zip(question.questions, answer, strict=True)]
        return None if any(part is None for part in parts) else parts
    if isinstance(question, SumsAt):
        return to_json(answer) if np.isfinite([answer.cost, *answer.gradient]).all() else None
    if isinstance(question, Thinned):
        arrays = (answer.y, *answer.coords, *([] if answer.sigma is None else [answer.sigma]))
        is_finite = all(np.isfinite(array).all() for array in arrays)
        return [array.tolist() for array in arrays] if is_finite else None
    if isinstance(question, MeansOf):
        return means_to_json(answer)
    return to_json(answer)


def decode(question: AnyQuestion[Any], value: Any, n_arrays: int) -> Any:
    """Read an answer.

    Parameters
    ----------
    question : AnyQuestion
    value : object
        JSON value.
    n_arrays : int
        Number of arrays that the rows have: y, the coordinates, and sigma if there is one.

    Raises
    ------
    KeyError, ValueError
        If the value is no answer to the question.
    """
    if isinstance(question, Several):
        parts = _list_of(len(question.questions), value)
        pairs = zip(question.questions, parts, strict=True)
        return Answers(tuple(decode(of, part, n_arrays) for of, part in pairs))
    if isinstance(question, SumsAt):
        return _checked(from_json(NormalEquations, value), question, n_arrays)
    if isinstance(question, CostsAt):
        costs = floats_from_json(value)
        check_shape("costs", costs, (len(question.candidates),))
        return costs
    if isinstance(question, MeansOf):
        return means_from_json(value, question)
    return _sample(question, value)


def _checked(sums: NormalEquations, question: SumsAt, n_arrays: int) -> NormalEquations:
    """Refuse sums of another shape, or with numbers that no rows give."""
    q = question.basis.shape[1]
    check_shape("gradient", sums.gradient, (q,))
    for name in ("gram", "concave", "scores"):
        if (matrix := getattr(sums, name)) is not None:
            check_shape(name, matrix, (q, q))
    if sums.largest is not None:
        check_shape("largest", sums.largest, (n_arrays,))
    if sums.sample_of_columns is not None:
        check_shape("sample_of_columns", sums.sample_of_columns, (n_arrays - 1,))
    if (sums.largest is None) == question.observe and sums.n_points:
        raise _errors.value_out_of_range("largest")
    if not np.isfinite([sums.cost, sums.chi2, *sums.gradient, *np.ravel(sums.gram)]).all():
        raise _errors.value_not_finite("cost")
    if any(value < 0.0 for name, value in asdict(sums.moments).items() if name != "mean"):
        raise _errors.value_out_of_range("moments")
    return sums


def _sample(question: Any, value: Any) -> Sample:
    n = 1 + question.n_coords + question.weighted
    arrays = [floats_from_json(array) for array in _list_of(n, value)]
    for array in arrays:
        check_shape("a sample", array, (arrays[0].size,))
    coords = tuple(arrays[1 : 1 + question.n_coords])
    return Sample(arrays[0], coords, arrays[-1] if question.weighted else None)


def _list_of(n: int, value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) != n:
        raise _errors.value_of_another_kind(value, f"a list of {n}")
    return value


def differs(question: AnyQuestion[Any], kept: Any, now: Any, rounding: float) -> bool:
    """Whether two answers of the same rows differ by more than rounding."""
    if isinstance(question, Several):
        pairs = zip(question.questions, kept, now, strict=True)
        return any(differs(part, a, b, rounding) for part, a, b in pairs)
    before, after = _compared(kept), _compared(now)
    if before.shape != after.shape:
        return True
    return not np.allclose(before, after, rtol=rounding, atol=0.0, equal_nan=True)


def _compared(answer: Any) -> FloatArray:
    """Numbers of an answer that other rows would change."""
    if isinstance(answer, NormalEquations):
        numbers = (answer.n_points, answer.n_skipped, answer.cost, answer.moments.sq_residuals)
        return np.array([*numbers, *np.diag(answer.gram)], np.float64)
    if isinstance(answer, Means):
        return means_compared(answer)
    return np.asarray(answer.y if isinstance(answer, Sample) else answer, np.float64)


def read_groups(
    question: AnyQuestion[Any], value: Any, n_groups: int, n_arrays: int
) -> dict[int, Any]:
    """Read the answers of groups by number; none if they are of another number of groups.

    The arguments are those of :func:`decode`.

    Raises
    ------
    KeyError, ValueError
        If a value is no answer to the question, or a name no number of a group.
    """
    match value:
        case {"n_groups": int(n), "groups": dict(groups)}:
            if n != n_groups:
                return {}
        case _:
            raise _errors.value_of_another_kind(value, "the answers of groups")
    numbers = {str(number): number for number in range(n_groups)}
    return {numbers[name]: decode(question, answer, n_arrays) for name, answer in groups.items()}


@dataclass(frozen=True)
class _LeftOut:
    """Blocks that are left out, as a file has them.

    Attributes
    ----------
    lost : dict
        Blocks that were lost in groups of a pass, by number of the group.
    omitted : tuple of tuple of int
        All blocks that are left out after an answer.
    """

    lost: dict[str, tuple[LostBlock, ...]] = field(default_factory=dict)
    omitted: tuple[tuple[int, ...], ...] = ()


def left_out_to_json(lost: Mapping[int, Sequence[LostBlock]], omitted: Blocks) -> dict[str, Any]:
    """Blocks that are left out, as JSON values; nothing where there are none."""
    named = {str(number): to_json(list(blocks)) for number, blocks in lost.items()}
    found: dict[str, Any] = {"lost": named} if named else {}
    return found | ({"omitted": sorted(map(list, omitted))} if omitted else {})


def read_left_out(
    value: Mapping[str, Any], grid: Sequence[int]
) -> tuple[dict[int, tuple[LostBlock, ...]], Blocks]:
    """Read the blocks that were lost in groups, and those that are left out after an answer.

    Parameters
    ----------
    value : mapping
        As from :func:`left_out_to_json`, among other values.
    grid : sequence of int
        Blocks along each dimension.

    Raises
    ------
    KeyError, ValueError
        If a value is no block of the grid.
    """
    own = {name: value[name] for name in ("lost", "omitted") if name in value}
    found = _LeftOut(**fields_from_json(_LeftOut, own))
    indices = [block.index for blocks in found.lost.values() for block in blocks]
    for index in (*indices, *found.omitted):
        pairs = zip(index, grid, strict=False)
        if len(index) != len(grid) or not all(0 <= i < n for i, n in pairs):
            raise _errors.value_out_of_range("omitted")
    return {int(n): blocks for n, blocks in found.lost.items()}, frozenset(found.omitted)


def read_pilot(value: Any, box: Box) -> tuple[Pilot | None, int]:
    """Read what a pilot found, and the passes that it took.

    Raises
    ------
    KeyError, ValueError
        If the value is no outcome of a pilot.
    """
    match value:
        case {"found": list(found), "n_passes": 0 | 1 as n_passes} if len(found) <= 1:
            pass
        case _:
            raise _errors.value_of_another_kind(value, "the outcome of a pilot")
    if not found:
        return None, int(n_passes)
    pilot = from_json(Pilot, found[0])
    size = box.lower.size
    check_shape("ends", pilot.ends, (len(pilot.ends), size))
    if not (len(pilot.ends) and ((box.lower <= pilot.ends) & (pilot.ends <= box.upper)).all()):
        raise _errors.value_out_of_range("ends")
    check_linearization(pilot.linearization, size, np.ones(size))
    for start in pilot.starts:
        check_shape("p0", start.p0, (size,))
        if start.params is not None:
            check_shape("params", start.params, (size,))
        if start.basin is not None and start.basin >= len(pilot.ends):
            raise _errors.value_out_of_range("basin")
    return pilot, int(n_passes)
