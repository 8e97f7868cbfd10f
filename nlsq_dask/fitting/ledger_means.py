"""The means at the distinct coordinates as JSON values, for the ledger of a collapsed fit.

Numbers are written in the shortest form that reads back to the same bits. They are read with doubt:
boxes within the distinct coordinates of the data, and arrays by the shapes of these boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.io.chunks import broadcast_box, lengths
from nlsq_dask.io.codec import check_shape, floats_from_json, to_json
from nlsq_dask.questions.collapse import BoxKey, Cell, Means, MeansOf
from nlsq_dask.questions.spread import Spread

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.steps import Group

# Bytes of the means of a distinct coordinate: weight, mean and scatter, with and without sigma.
BYTES_A_MEAN = 48


def means_to_json(means: Means) -> Any:
    """The means of some rows, as JSON values; None for means that are not finite."""
    numbers = [array for cell in means.cells.values() for array in _arrays_of(cell)]
    numbers += [means.largest, np.array([means.variance])]
    if not all(np.isfinite(array).all() for array in numbers):
        return None
    cells = [
        {
            "box": [list(ends) for ends in key],
            "rows": _flat(cell.rows),
            "weighted": None if cell.weighted is None else _flat(cell.weighted),
            "coords": [to_json(coord.ravel()) for coord in cell.coords],
        }
        for key, cell in means.cells.items()
    ]
    return {
        "cells": cells,
        "n_left_out": means.n_left_out,
        "variance": means.variance,
        "largest": to_json(means.largest),
    }


def means_from_json(value: Any, question: MeansOf) -> Means:
    """Read the means of some rows.

    Raises
    ------
    KeyError, ValueError
        If the value is no answer to the question.
    """
    match value:
        case {"cells": list(cells), "n_left_out": int(n_left_out), "variance": variance}:
            pass
        case _:
            raise _errors.value_of_another_kind(value, "means")
    largest = floats_from_json(value["largest"])
    check_shape("largest", largest, (2,))
    (total,) = floats_from_json([variance])
    if n_left_out < 0 or not total >= 0.0:
        raise _errors.value_out_of_range("n_left_out")
    found = dict(_cell(cell, question) for cell in cells)
    return Means(found, n_left_out, float(total), largest)


def means_compared(means: Means) -> FloatArray:
    """Numbers of means that other rows would change."""
    cells = [means.cells[key] for key in sorted(means.cells)]
    arrays = [part for cell in cells for part in (cell.rows.weight, cell.rows.mean)]
    counts = np.array([means.n_left_out, means.variance], np.float64)
    return np.concatenate([counts, *(array.ravel() for array in arrays)])


def bytes_of_means(question: MeansOf, groups: Sequence[Group]) -> int:
    """Bytes of the answers of all groups."""
    total = 0
    for group in groups:
        boxes = {question.key(step.box) for step in group.steps}
        total += sum(math.prod(stop - start for start, stop in key) for key in boxes)
    return BYTES_A_MEAN * total


def _arrays_of(cell: Cell) -> list[FloatArray]:
    spreads = [cell.rows] if cell.weighted is None else [cell.rows, cell.weighted]
    return [part for s in spreads for part in (s.weight, s.mean, s.scatter)] + list(cell.coords)


def _flat(spread: Spread) -> list[Any]:
    return [to_json(part.ravel()) for part in (spread.weight, spread.mean, spread.scatter)]


def _cell(value: Any, question: MeansOf) -> tuple[BoxKey, Cell]:
    """A box and its means."""
    key = tuple(map(tuple, _listed(value["box"], len(question.shape))))
    for ends, n in zip(key, question.shape, strict=True):
        match ends:
            case (int(start), int(stop)) if 0 <= start < stop <= n:
                pass
            case _:
                raise _errors.value_out_of_range("box")
    box = tuple(slice(*ends) for ends in key)
    rows = _spread(value["rows"], lengths(box))
    weighted = _spread(value["weighted"], lengths(box)) if question.weighted else None
    parts = zip(_listed(value["coords"], len(question.coords)), question.coords, strict=True)
    coords = [_shaped(part, lengths(broadcast_box(box, shape)), "coords") for part, shape in parts]
    return key, Cell(rows, weighted, tuple(coords))


def _spread(value: Any, shape: Sequence[int]) -> Spread:
    weight, mean, scatter = (_shaped(part, shape, "means") for part in _listed(value, 3))
    if not ((weight >= 0.0).all() and (scatter >= 0.0).all()):
        raise _errors.value_out_of_range("means")
    return Spread(weight, mean, scatter)


def _shaped(value: Any, shape: Sequence[int], name: str) -> FloatArray:
    flat = floats_from_json(value)
    check_shape(name, flat, (math.prod(shape),))
    return flat.reshape(tuple(shape))


def _listed(value: Any, n: int) -> list[Any]:
    if not isinstance(value, list) or len(value) != n:
        raise _errors.value_of_another_kind(value, f"a list of {n}")
    return value
