"""Errors of how a fit is run: choices, strategy, progress, callback, collapsed rows."""

from __future__ import annotations

from collections.abc import Sequence

from nlsq_dask._errors.kinds import InputError, InputTypeError, in_units, join_names, shown


def unknown_choice(argument: str, value: object, choices: Sequence[object]) -> InputError:
    listed = join_names([repr(choice) for choice in choices])
    return InputError(f"{argument} = {shown(value)} is unknown: choose one of {listed}.")


def count_invalid(name: str, value: object) -> InputError:
    return InputError(f"{name} = {value!r}: pass a positive whole number.")


def progress_invalid(value: object) -> InputError:
    return InputError(
        f"progress = {shown(value)}: pass True to show progress from the start, False for none, or "
        "None to show progress in a terminal and a notebook once the fit has taken two seconds."
    )


def seed_invalid(value: object) -> InputError:
    return InputError(
        f"seed = {value!r}: pass a whole number of at least zero. The same seed draws the same "
        "starts."
    )


def callback_not_callable(value: object) -> InputTypeError:
    return InputTypeError(
        f"callback = {value!r} cannot be called: pass a function callback(intermediate_result), "
        "which may raise StopIteration to end the fit."
    )


def verbose_invalid(value: object) -> InputError:
    return InputError(
        f"verbose = {value!r}: pass 0 for silence, 1 for a report at the end, or 2 for a line at "
        "every evaluation."
    )


def lazy_data_in_memory(strategy: str) -> InputError:
    return InputError(
        f"strategy = {strategy!r} needs data in memory, but a Dask or Zarr array was passed: use "
        "strategy='streaming' or 'auto', or load small arrays first with .compute() or [...]."
    )


def workflow_for_lazy_data(workflow: str, strategy: str, choices: Sequence[str]) -> InputError:
    listed = " or ".join(repr(choice) for choice in choices)
    return InputError(
        f"workflow = {workflow!r} keeps the data in memory (strategy {strategy!r}), but a Dask or "
        f"Zarr array was passed: use workflow={listed}, or load small arrays first with .compute() "
        "or [...]."
    )


COLLAPSE_OF_CORRELATED = "sigma is a covariance matrix, by which all rows depend on each other"

COLLAPSE_OF_DEPENDENT_ROWS = "a value of the model depends on more than the coordinates of its row"


def collapse_of_loss(loss: str) -> str:
    return f"loss={loss!r} depends on each residual, and only sums of squares follow from means"


def collapse_without_broadcast(shape: tuple[int, ...]) -> str:
    return (
        f"the coordinates vary along every dimension of y, which has the shape {shape}. Pass "
        "coordinates that broadcast, as x[:, None] for y of the shape (time, pixel)"
    )


def collapse_of_few(n_distinct: int, n_rows: int) -> str:
    return (
        f"{n_rows:,} rows have {n_distinct:,} distinct coordinates, which is over a tenth of them"
    )


def collapse_too_large(n_distinct: int, needed: float, limit: float) -> str:
    return (
        f"the means at {n_distinct:,} distinct coordinates need {in_units(needed)} of memory with "
        f"the reading, and the budget has {in_units(limit)}: raise memory_limit_gb"
    )


def not_collapsible(reason: str) -> InputError:
    return InputError(
        f"collapse=True is impossible: {reason}. Pass collapse='auto' or False to sum over all "
        "rows in every pass."
    )
