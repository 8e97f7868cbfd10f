"""What can be wrong with the data of a fit."""

from __future__ import annotations

from nlsq_dask._errors.kinds import (
    InputError,
    InputTypeError,
)


def not_an_array(name: str, cause: Exception) -> InputError:
    """A list is ragged, or something else that NumPy makes no array of."""
    return InputError(f"{name} cannot be made an array ({cause}): pass equally long rows.")


def not_real(name: str, dtype: object) -> InputTypeError:
    """An array holds no real numbers."""
    return InputTypeError(
        f"{name} has dtype {dtype}, but a fit needs real numbers: convert it, for example with "
        f"{name}.astype(float), or fit the real and imaginary parts of complex data."
    )


def masked(name: str) -> InputError:
    """An array is masked."""
    return InputError(
        f"{name} is a masked array, whose hidden values would enter the fit: pass only the rows "
        "that are not masked, for example x[~y.mask] and y.compressed()."
    )


def unknown_chunks(name: str) -> InputError:
    """A Dask array does not know how long its chunks are."""
    return InputError(
        f"{name} has chunks of unknown size, so that rows of x and y cannot be paired: call "
        f"{name}.compute_chunk_sizes() first, which reads it once."
    )


def no_rows(name: str, shape: tuple[int, ...]) -> InputError:
    """There are no data."""
    return InputError(f"{name} is empty, with shape {shape}: there is nothing to fit.")


def unequal_lengths(name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> InputError:
    """An array does not broadcast to y's shape."""
    return InputError(
        f"{name} has shape {tuple(got)} but y has shape {tuple(expected)}: pass an array of y's "
        f"shape, one that broadcasts to it, (k, *{tuple(expected)}) for k coordinates, or a tuple "
        "of coordinate arrays."
    )


def sigma_not_positive(count: int, example: float) -> InputError:
    """Standard deviations must be positive."""
    return InputError(
        f"sigma has {count} values that are not positive (one is {example!r}): standard "
        "deviations must be greater than zero."
    )


def not_finite(name: str, count: int, first: tuple[int, ...] | None) -> InputError:
    """Values are NaN or infinite."""
    place = "" if first is None else f", the first at index {first}"
    return InputError(
        f"{name} has {count} values that are NaN or infinite{place} (array must not contain infs "
        "or NaNs): remove those rows."
    )
