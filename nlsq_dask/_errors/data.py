"""Errors of the data of a fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nlsq_dask._errors.kinds import (
    InputError,
    InputTypeError,
    PrecisionWarning,
    StartNotFiniteError,
    join_names,
    shown,
    values_that_are,
)


def unknown_chunks(name: str) -> InputError:
    return InputError(
        f"{name} has chunks of unknown size, so that rows of x and y cannot be paired: call "
        f"{name}.compute_chunk_sizes() first, which reads it once."
    )


def block_shape(
    name: str,
    index: tuple[int, ...],
    slices: str,
    got: tuple[int, ...],
    announced: tuple[int, ...],
) -> InputError:
    return InputError(
        f"block {index} of {name}, which is {name}[{slices}], has shape {tuple(got)}, but {name} "
        f"announces {announced}, so that rows would be paired wrongly: correct what makes the "
        "block (map_blocks, from_delayed) so that it keeps the shape, or open a file again that "
        "was changed since. Where rows are meant to be "
        f"dropped, drop the same of all arrays and call compute_chunk_sizes() on each, or pass a "
        "mask."
    )


def block_dtype(name: str, index: tuple[int, ...], dtype: object) -> InputTypeError:
    return InputTypeError(
        f"block {index} of {name} has dtype {dtype}, which its array does not announce: correct "
        "what makes the block (map_blocks, from_delayed), or the dtype that is passed to it."
    )


def no_rows(shape: tuple[int, ...]) -> InputError:
    return InputError(f"y is empty, with shape {shape}: there is nothing to fit.")


def mask_not_boolean(dtype: object) -> InputTypeError:
    return InputTypeError(
        f"mask has dtype {dtype}, but a mask holds True for rows to leave out and False for the "
        "others: compare first, for example mask=(flags != 0)."
    )


def fill_value_not_a_number(value: object) -> InputTypeError:
    return InputTypeError(
        f"fill_value = {shown(value)} is no real number: pass the one number that stands for "
        "missing values of y, or a mask."
    )


def fill_value_does_not_fit(value: object, dtype: object) -> InputError:
    return InputError(
        f"fill_value = {shown(value)} cannot be held by y's dtype {dtype}, so that no row equals "
        "it: pass the value as it is stored in y."
    )


def all_left_out(n_rows: int, causes: Sequence[str]) -> InputError:
    return InputError(
        f"all {n_rows} rows are left out: check {join_names(causes)} (True in a mask leaves a row "
        "out)."
    )


def sigma_no_deviation(count: int, example: float, place: str = "") -> InputError:
    what = "not positive"
    remedy = ", and mask=(sigma <= 0) leaves out rows without one"
    if math.isnan(example):
        remedy = ", and nan_policy='omit' leaves out rows with NaN"
    elif math.isinf(example) and example > 0:  # no weight, yet a degree of freedom
        what, remedy = "infinite", ", and a mask leaves out rows that are to have no weight"
    return InputError(
        f"sigma has {values_that_are(count)} {what} (one is {example!r}){place}: standard "
        f"deviations must be greater than zero and finite{remedy}."
    )


def values_not_finite() -> StartNotFiniteError:
    """Arrays have NaN, or infinite y or weights; where is told by looking for them."""
    return StartNotFiniteError(
        "x, y or 1 / sigma has values that are NaN or infinite, which were not found when the data "
        "were read again: pass data that are the same in every reading, and no sigma below 1e-307."
    )


def squares_out_of_range(
    y: float, weight: float, *, least: float, largest: float
) -> StartNotFiniteError:
    sizes, unit = f"y has values up to {y:.3g}", f"y is between {least:g} and {largest:g}"
    what = "y and the model by a number"
    if weight != 1.0:
        sizes += f" and sigma has values down to {1.0 / weight:.3g}"
        what = "y, sigma and the model by a number (without absolute_sigma, sigma by any number)"
        unit = f"y, sigma and y / sigma are between {least:g} and {largest:g}"
    return StartNotFiniteError(
        f"{sizes}, and float64 does not hold sums of squares of such sizes: divide {what}, such "
        f"that {unit}."
    )


def integers_rounded(name: str, size: float) -> PrecisionWarning:
    return PrecisionWarning(
        f"{name} has integers up to {size:.4g}, beyond 2**53 = 9.007e15, and the model gets them "
        f"rounded to multiples of {math.ulp(size):.0f}: subtract an origin in integer "
        f"arithmetic first, for example {name} - {name}[0]."
    )


def not_finite(
    name: str, count: int, place: str, n_affected: int, n_nan: int, marked_by: str = ""
) -> InputError:
    """Values are NaN or infinite.

    Parameters
    ----------
    name : str
        The first array that has such values.
    count : int
        Rows with such values in this array.
    place : str
        Where the first is, from the comma on.
    n_affected, n_nan : int
        Rows with such a value in any array, and rows with NaN among them.
    marked_by : str
        The attributes of the stored array that make NaN of some of its numbers.
    """
    remedies = []
    affected = "1 row is" if n_affected == 1 else f"{n_affected} rows are"
    if marked_by:
        place += (
            f". The attributes of {name} mark stored numbers as missing ({marked_by}), and these "
            "become NaN"
        )
    if n_nan:
        remedies.append(f"nan_policy='omit' leaves out the {n_nan} with NaN")
    if n_nan < n_affected:
        remedies.append("a mask leaves out those with infinite values")
    return InputError(
        f"{name} has {values_that_are(count)} NaN or infinite{place} (array must not contain infs "
        f"or NaNs). {affected} affected in all: {' and '.join(remedies)}."
    )


def coordinates_wrong(structure: str, count: int, got: object) -> InputError:
    wanted = {
        "tuple": f"a tuple of {count} arrays that broadcast together",
        "stacked": f"an array ({count}, ...), with one coordinate behind the other",
    }[structure]
    shape = getattr(got, "shape", None)
    what = f"has shape {tuple(shape)}" if shape is not None else f"is a {type(got).__name__}"
    if isinstance(got, tuple | list):
        what += f" of length {len(got)}"
    return InputError(
        f"x {what}, but the model was fitted with {count} coordinates: pass {wanted}."
    )


def coordinates_do_not_broadcast(shapes: Sequence[tuple[int, ...]]) -> InputError:
    listed = ", ".join(str(tuple(shape)) for shape in shapes)
    return InputError(
        f"the coordinates in x have shapes {listed}, which do not broadcast together: pass arrays "
        "of one shape, or with lengths of 1 where they do not vary."
    )


def covariance_in_parts() -> InputError:
    """A covariance matrix was given for rows that are not evaluated together."""
    return InputError(
        "sigma is a covariance matrix, which ties every row to all others, so that the rows must "
        "be in memory and are evaluated together: pass standard deviations of y's shape to fit "
        "Dask or Zarr arrays or in chunks, or load a small part of the data, and leave strategy "
        "to 'auto'."
    )


def sigma_not_positive_definite() -> InputError:
    return InputError(
        "`sigma` must be positive definite. The matrix has an eigenvalue that is zero or negative: "
        "pass a covariance matrix, or standard deviations of y's shape."
    )


def covariance_not_symmetric(i: int, j: int, above: float, below: float) -> InputError:
    return InputError(
        f"sigma is a matrix, but not symmetric: sigma[{i}, {j}] = {above:g} and sigma[{j}, {i}] = "
        f"{below:g}. Pass a covariance matrix, or standard deviations of y's shape."
    )


def covariance_not_finite(count: int) -> InputError:
    return InputError(
        f"sigma has {values_that_are(count)} NaN or infinite (array must not contain infs or "
        "NaNs): a covariance matrix must be finite for all rows that are not left out."
    )
