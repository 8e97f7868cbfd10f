"""Errors and warnings of maps of fits, one fit for each series."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from nlsq_dask._errors.kinds import (
    ConvergenceError,
    ConvergenceWarning,
    InputError,
    InputTypeError,
    MissingLibraryError,
    Status,
    in_units,
    join_names,
    shortened,
    shown,
)

# What a count of series says of each status without success.
_COUNTED = {
    Status.NOT_FITTED: "not fitted yet",
    Status.BAD_INPUT: "with infinite values or unusable p0, bounds or sigma",
    Status.START_NOT_FINITE: "where the model is not finite at the start",
    Status.TOO_FEW_ROWS: "with fewer rows than free parameters",
    Status.UNDETERMINED: "with undetermined parameters",
    Status.STALLED: "stalled before the optimum",
    Status.MAX_EVALUATIONS: "out of evaluations",
}


def series_without_axes() -> InputError:
    return InputError(
        "y is a single number: pass an array with one axis to fit along, or more, and call fit() "
        "for a single series."
    )


def no_such_axis(item: object, dims: Sequence[Hashable] | None, ndim: int) -> InputError:
    known = f"y has {ndim} axes, 0 to {ndim - 1}" if dims is None else f"y has {tuple(dims)}"
    return InputError(f"dim={shown(item)} is no dimension of y: {known}.")


def fitted_axes_repeated(dim: object) -> InputError:
    return InputError(f"dim={shown(dim)}: name each dimension to fit along once.")


def coordinates_of_other_axes(
    shapes: Sequence[tuple[int, ...]],
    full: tuple[int, ...],
    *,
    fit: Sequence[Hashable],
    varying: Sequence[Hashable],
) -> InputError:
    dim = varying[0] if len(varying) == 1 else tuple(varying)
    own, series = _axes(varying), _axes(fit)
    return InputError(
        f"x has shape {join_names([str(shape) for shape in shapes])}, which belongs to {own} of y, "
        f"of shape {full}, but the series run along {series}, where x does not vary: pass "
        f"dim={dim!r} to fit along {own}. If x has one value for each series, pass x with all axes "
        "of y."
    )


def map_shape(
    name: str,
    shape: tuple[int, ...],
    *,
    map_shape: tuple[int, ...],
    full: tuple[int, ...],
    fit: Sequence[Hashable],
    other: Hashable | None,
) -> InputError:
    remedy = "" if other is None else f"; if the series run along {_axes([other])}, dim={other!r}"
    return InputError(
        f"{name} has shape {shape}, but the map has shape {map_shape}, as series of y, of shape "
        f"{full}, run along {_axes(fit)}: pass a number, or an array that broadcasts to the "
        f"map{remedy}."
    )


def row_values_shape(
    name: str,
    shape: tuple[int, ...],
    *,
    series: tuple[int, ...],
    map_shape: tuple[int, ...],
    full: tuple[int, ...],
) -> InputError:
    return InputError(
        f"{name} has shape {tuple(shape)}, but series have shape {series}, the map has shape "
        f"{map_shape}, and y has shape {full}: pass an array of one of these shapes, or an array "
        "that broadcasts to y."
    )


def _axes(axes: Sequence[Hashable]) -> str:
    kind = "axis" if len(axes) == 1 else "axes"
    return f"{kind} {join_names([repr(axis) for axis in axes])}"


def axes_ambiguous(
    name: str, shape: tuple[int, ...], full: tuple[int, ...], fit: Sequence[int]
) -> InputError:
    axes = tuple(n if d in fit else 1 for d, n in enumerate(full))
    other = tuple(1 if d in fit else n for d, n in enumerate(full))
    return InputError(
        f"{name} has shape {shape}, which is both that of a series and that of the map of y "
        f"{full}: pass shape {axes} for a number in each row, or {other} for a number in each "
        "series."
    )


def series_parameters(argument: str, value: object, size: int) -> InputError:
    return InputError(
        f"{argument} = {shown(value)}: pass a number or a map for each of the {size} parameters, "
        "in order or by name."
    )


def stat_tol_needed(value: object) -> InputError:
    return InputError(
        f"stat_tol={shown(value)}: pass a positive number of standard errors, by which a series "
        "may end from its optimum."
    )


def series_text(counts: Mapping[Status, int]) -> str:
    """How many series ended with which status, as in "12 converged, 3 stalled"."""
    good = sum(n for status, n in counts.items() if status.success)
    parts = [f"{good:,} converged"]
    for status, text in _COUNTED.items():
        if counts.get(status):
            parts.append(f"{counts[status]:,} {text}")
    return ", ".join(parts)


def series_not_converged(counts: Mapping[Status, int]) -> ConvergenceWarning:
    return ConvergenceWarning(_not_converged(counts))


def series_error(counts: Mapping[Status, int]) -> ConvergenceError:
    return ConvergenceError(_not_converged(counts))


def _not_converged(counts: Mapping[Status, int]) -> str:
    total = sum(counts.values())
    failed = sum(n for status, n in counts.items() if not status.success)
    return (
        f"{failed:,} of {total:,} series {'has' if total == 1 else 'have'} no answer: "
        f"{series_text(counts)}. `status` says which; a failed series has NaN for its errors. "
        "Look at some of them with at(...), improve p0, or bound the parameters."
    )


def maps_need_xarray() -> MissingLibraryError:
    return MissingLibraryError(
        "to_dataset() and to_curvefit() need xarray: install it with "
        "pip install 'nlsq_dask[xarray]'."
    )


def unknown_map(name: object, names: Sequence[str]) -> InputError:
    return InputError(f"there is no map {shown(name)}: the parameters are {', '.join(names)}.")


def maps_not_drawn(shape: tuple[int, ...]) -> InputError:
    return InputError(
        f"plot() draws maps of one or two dimensions, and this map has shape {shape}: fit a part "
        "of y, or draw maps.to_dataset()."
    )


def series_index(
    index: Sequence[object],
    by_name: Mapping[str, object],
    shape: tuple[int, ...],
    *,
    dims: Sequence[Hashable],
) -> InputError:
    passed = ", ".join([*map(repr, index), *(f"{k}={v!r}" for k, v in by_name.items())])
    named = f", {join_names([str(dim) for dim in dims])}" if by_name and dims else ""
    return InputError(
        f"at({passed}) is no series of the map of shape {shape}: pass an index for each axis"
        f"{named}."
    )


def maps_without_model(method: str) -> InputError:
    return InputError(
        f"{method} needs the model and the data, which are not kept with pickled maps: call it on "
        "the maps that fit_each() returns, or fit again."
    )


def series_of_new_x(shape: tuple[int, ...], ndim: int, axes: Sequence[int]) -> InputError:
    return InputError(
        f"x has shape {shape}, which does not tell the series apart: pass x with the {ndim} axes "
        f"of y, with series along {tuple(axes)}, or with those of one series alone; arrays of "
        "xarray have the names of the dimensions of the fit."
    )


def covariance_not_kept() -> InputError:
    return InputError("the maps hold no covariances: call fit_each(..., covariance=True).")


def map_store_not_a_place(value: object) -> InputTypeError:
    return InputTypeError(
        f"store={shown(value)} is no place for maps: pass a path, the URL of an object store, or a "
        "zarr.Group."
    )


def map_store_not_opened(place: str, cause: str) -> InputError:
    return InputError(
        f"store={place!r} cannot be opened for writing ({shortened(cause)}): check the place, its "
        "permissions, and storage_options= for an object store."
    )


def map_store_of_format_2(place: str) -> InputError:
    return InputError(
        f"the store {place} has Zarr's format 2, and maps are stored in format 3: pass a path, or "
        "a group of zarr.open_group(..., zarr_format=3)."
    )


def map_store_in_zip(place: str) -> InputError:
    return InputError(
        f"the store {place} is a zip archive, whose entries cannot be written again, or from "
        "several tasks: pass a path, and pack the folder when the maps are written."
    )


def map_store_not_empty(place: str) -> InputError:
    return InputError(
        f"the store {place} holds other arrays, which maps are not mixed with: pass a new place, "
        "or a group of its own."
    )


def map_store_in_use(place: str) -> InputError:
    return InputError(
        f"the store {place} holds maps already: pass resume=True to go on with them, or a new "
        "place."
    )


def map_store_of_another_release(place: str) -> InputError:
    return InputError(
        f"the store {place} was written by another release of nlsq_dask: go on with that release, "
        "or pass a new place."
    )


def map_store_of_another_problem(
    place: str, differing: Sequence[str], saved: object, now: object
) -> InputError:
    return InputError(
        f"the store {place} holds maps of another problem: {shortened(join_names(differing))} "
        f"differ ({shortened(differing[0])} was {shown(saved)} and is {shown(now)} now). Resume "
        "with the same problem, or pass a new place."
    )


def map_store_of_other_data(
    place: str,
    index: tuple[int, ...],
    names: Sequence[str],
    *,
    stored: Sequence[float],
    now: Sequence[float],
) -> InputError:
    values = [
        f"{name} = {was:.6g} (now {is_:.6g})"
        for name, was, is_ in zip(names, stored, now, strict=True)
    ]
    return InputError(
        f"the store {place} holds maps of other data: there, the series {index} has "
        f"{join_names(values)}. Resume with the data of the earlier run, or pass a new place."
    )


def map_store_in_memory() -> InputError:
    return InputError(
        "store= is a group in the memory of this process, which the workers of a cluster cannot "
        "write to: pass a path or a URL that all of them reach."
    )


def resume_without_store() -> InputError:
    return InputError("resume=True without a store: pass store=, the place of the earlier run.")


def neighbours_of_frames(needed: float, room: float, chunks: Sequence[int]) -> InputError:
    return InputError(
        f"the series of a chunk of the map take {in_units(needed)} of memory, and a task has "
        f"{in_units(room)}. They are read frame by frame, and refine='neighbours' needs whole "
        f"series: rechunk y to at most {tuple(chunks)} along the map, run on workers with more "
        "memory (memory_limit_gb says how much there is), or leave refine out."
    )


def series_too_large(needed: float, room: float, chunks: Sequence[int]) -> InputError:
    return InputError(
        f"the series of a chunk of the map take {in_units(needed)} of memory, and a task has "
        f"{in_units(room)}. The model mixes the rows of a series, so series are read whole and not "
        f"frame by frame: rechunk y to at most {tuple(chunks)} along the map, or run on workers "
        "with more memory (memory_limit_gb says how much there is)."
    )


def blocks_of_series_too_large(
    needed_gb: float, available_gb: float, tasks: int, chunks: tuple[int, ...]
) -> str:
    at_one_time = "one task" if tasks == 1 else f"{tasks} tasks at one time"
    return (
        f"{at_one_time} with the series of a block each may take {needed_gb:.3g} GB of "
        f"{available_gb:.3g} GB: cut y across the series, y.rechunk({chunks}), or run fewer tasks "
        "at one time."
    )


def blocks_of_few_series(blocks: int, series: int, chunks: tuple[int, ...]) -> str:
    return (
        f"{blocks:,} blocks have {series:,} series or fewer each, and a block costs some "
        f"milliseconds however few they are: join them, y.rechunk({chunks}), or store y so."
    )
