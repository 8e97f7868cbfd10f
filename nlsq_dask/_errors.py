"""Every failure the package can report: statuses, errors, warnings, and their texts.

A status, an error or a warning names a cause and a remedy. Texts that need values are built by the
functions of this module, so that all wording lives in one place and no layer invents its own.
This module imports nothing of the package, so that every layer may use it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum


class FitError(Exception):
    """Base class of every error raised by nlsq_dask."""


class InputError(FitError, ValueError):
    """An argument has an unusable value; the message names it, what was got, and the remedy."""


class InputTypeError(FitError, TypeError):
    """An argument has an unusable type; the message names it, what was got, and the remedy."""


class StartNotFiniteError(InputError):
    """The sum of squares or its derivatives are not finite at the starting point."""


class ModelError(FitError, ValueError):
    """The model cannot be used as it is written."""


class NotRowWiseError(ModelError):
    """The model's value at one row depends on other rows, which streaming cannot evaluate."""


class UntraceableModelError(ModelError, TypeError):
    """The model calls something that JAX cannot trace."""


class ConvergenceError(FitError, RuntimeError):
    """No optimum was found, where a caller asked for a result or an exception."""


class FitWarning(UserWarning):
    """Base class of every warning given by nlsq_dask."""


class CovarianceWarning(FitWarning):
    """The data do not determine the covariance of the parameters."""


class ConvergenceWarning(FitWarning):
    """The fit ended without meeting a convergence criterion."""


class CheckpointWarning(FitWarning):
    """A checkpoint could not be written or read."""


class Status(IntEnum):
    """Why a fit ended, with the numbers of ``scipy.optimize.least_squares``."""

    MAX_EVALUATIONS = 0
    GRADIENT = 1
    COST = 2
    STEP = 3
    COST_AND_STEP = 4

    @property
    def success(self) -> bool:
        """Whether a convergence criterion was met."""
        return self > 0

    @property
    def message(self) -> str:
        """Cause, and the remedy where one is needed."""
        return _STATUS_MESSAGES[self]


_STATUS_MESSAGES = {
    Status.MAX_EVALUATIONS: (
        "The maximum number of function evaluations was reached before convergence: "
        "raise max_nfev, improve p0, or loosen ftol, xtol and gtol."
    ),
    Status.GRADIENT: "`gtol` termination condition is satisfied.",
    Status.COST: "`ftol` termination condition is satisfied.",
    Status.STEP: "`xtol` termination condition is satisfied.",
    Status.COST_AND_STEP: "Both `ftol` and `xtol` termination conditions are satisfied.",
}


def join_names(names: Sequence[str]) -> str:
    """Write names as a readable list: ``a, b and c``."""
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + " and " + names[-1]


# Devices


def no_such_device(platform: str, available: str) -> InputError:
    """A device was asked for that JAX does not have."""
    return InputError(
        f"device={platform!r} is not available: JAX runs on {available!r} here. "
        "Pass device='cpu', 'gpu' or None, or install a JAX that supports the device."
    )


# Data


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


# How a fit is run, and how it ended


def unknown_choice(argument: str, value: object, choices: Sequence[str]) -> InputError:
    """An argument is none of its choices."""
    listed = join_names([repr(choice) for choice in choices])
    return InputError(f"{argument} = {value!r} is unknown: choose one of {listed}.")


def lazy_data_in_memory(strategy: str) -> InputError:
    """A strategy for data in memory was asked for Dask or Zarr arrays."""
    return InputError(
        f"strategy = {strategy!r} needs data in memory, but a Dask or Zarr array was passed: use "
        "strategy='streaming' or 'auto', or load small arrays first with .compute() or [...]."
    )


def not_converged(status: Status) -> ConvergenceWarning:
    """A fit ended without meeting a criterion."""
    return ConvergenceWarning(status.message)


def covariance_undetermined() -> CovarianceWarning:
    """The Jacobian is singular, or there are too few rows."""
    return CovarianceWarning(
        "Covariance of the parameters could not be estimated: the data do not determine all "
        "parameters, or there are no more rows than parameters. pcov is infinite; simplify the "
        "model, or add data that depend on every parameter."
    )


def optimum_not_found(message: str) -> ConvergenceError:
    """What curve_fit raises where fit warns."""
    return ConvergenceError(f"Optimal parameters not found: {message}")


@contextmanager
def quiet_convergence() -> Iterator[None]:
    """Leave out the warning for which the caller raises an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


# Bounds, starting values and options of the solver


def bounds_form(bounds: object, size: int) -> InputTypeError:
    """Bounds are in no accepted form."""
    return InputTypeError(
        f"bounds = {bounds!r} is not a pair: pass (lower, upper), each a number or {size} numbers, "
        "or {name: (lower, upper)} by parameter name, or scipy.optimize.Bounds."
    )


def bound_not_numbers(side: str, value: object) -> InputTypeError:
    """One side of the bounds is not made of numbers."""
    return InputTypeError(
        f"the {side} bounds are {value!r}: pass numbers, with None where there is no bound."
    )


def bound_pair(name: str, value: object) -> InputTypeError:
    """The bounds of a named parameter are no pair."""
    return InputTypeError(
        f"the bounds of parameter {name} are {value!r}: pass (lower, upper), with None where there "
        "is no bound."
    )


def bound_shape(side: str, shape: tuple[int, ...], size: int) -> InputError:
    """One side of the bounds has another length than the parameters."""
    return InputError(
        f"the {side} bounds have shape {shape} but the model has {size} parameters: pass one "
        f"number for all of them or an array of shape ({size},)."
    )


def bound_is_nan(side: str, names: Sequence[str]) -> InputError:
    """A bound is not a number."""
    return InputError(
        f"the {side} bounds of {join_names(names)} are NaN: use None or an infinity where there is "
        "no bound."
    )


def bounds_crossed(name: str, lower: float, upper: float) -> InputError:
    """A lower bound is not below the upper one."""
    return InputError(
        f"parameter {name} has the lower bound {lower!r} and the upper bound {upper!r}: each lower "
        "bound must be strictly less than each upper bound."
    )


def unknown_parameter_names(
    argument: str, unknown: Sequence[str], names: Sequence[str]
) -> InputError:
    """A mapping by parameter name has other keys."""
    return InputError(
        f"{argument} names {join_names(unknown)}, but the model's parameters are "
        f"{join_names(names)}: correct the names."
    )


def p0_names_missing(missing: Sequence[str]) -> InputError:
    """Starting values by name are incomplete."""
    return InputError(
        f"p0 has no value for {join_names(missing)}: give a starting value to every parameter, or "
        "leave p0 out to start from the default."
    )


def p0_not_numbers(p0: object) -> InputTypeError:
    """Starting values are not numbers."""
    return InputTypeError(
        f"p0 = {p0!r} is not a sequence of real numbers: pass one starting value a parameter, in "
        "the model's order or as {name: value}."
    )


def p0_length(size: int, names: Sequence[str]) -> InputError:
    """Starting values have another length than the parameters."""
    return InputError(
        f"p0 has length {size} but the model has {len(names)} parameters, {join_names(names)}: "
        "pass one starting value for each."
    )


def p0_not_finite(names: Sequence[str]) -> InputError:
    """A starting value is NaN or infinite."""
    return InputError(
        f"p0 is NaN or infinite for {join_names(names)}: pass finite starting values."
    )


def p0_infeasible(name: str, value: float, lower: float, upper: float) -> InputError:
    """A starting value lies outside of its bounds."""
    return InputError(
        f"p0 is infeasible: {name} = {value!r} lies outside of its bounds [{lower!r}, {upper!r}]: "
        "move the starting value inside, or widen the bounds."
    )


def start_not_finite(params: Iterable[float]) -> StartNotFiniteError:
    """The model has no finite value at the starting point."""
    return StartNotFiniteError(
        f"the sum of squared residuals is not finite at the starting point p0 = {_listed(params)} "
        "(residuals are not finite in the initial point): choose a p0 where the model is finite on "
        "all rows, and check the data and sigma for NaN, infinities and zeros."
    )


def start_derivative_not_finite(params: Iterable[float]) -> StartNotFiniteError:
    """The model has no finite derivatives at the starting point."""
    return StartNotFiniteError(
        f"the model is finite at the starting point p0 = {_listed(params)}, but its derivatives by "
        "the parameters are not: move p0 away from where a root, a power or a logarithm of the "
        "model has an infinite slope."
    )


def tolerance_invalid(name: str, value: float) -> InputError:
    """A tolerance is negative or NaN."""
    return InputError(f"{name} = {value!r}: pass a number of at least zero, or None to disable it.")


def tolerances_disabled(eps: float) -> InputError:
    """No criterion is left to stop by."""
    return InputError(
        "ftol, xtol and gtol are all None or below the machine precision "
        f"({eps:.2e}), so that nothing could end the fit: raise one of them."
    )


def max_nfev_invalid(value: int) -> InputError:
    """The number of evaluations allowed is not positive."""
    return InputError(f"max_nfev = {value!r}: pass a positive integer, or None for the default.")


def x_scale_invalid(value: object) -> InputError:
    """Characteristic sizes of the parameters are not positive."""
    return InputError(
        f"x_scale = {value!r}: pass 'jac', or positive finite numbers, one a parameter."
    )


def x_scale_shape(shape: tuple[int, ...], size: int) -> InputError:
    """Characteristic sizes have another length than the parameters."""
    return InputError(
        f"x_scale has shape {shape} but the model has {size} parameters: pass 'jac', or an array "
        f"of shape ({size},)."
    )


def _listed(params: Iterable[float]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in params) + "]"


# Models


def not_callable(function: object) -> InputTypeError:
    """The model is no function."""
    return InputTypeError(
        f"the model is {function!r}, which cannot be called: pass a function model(x, a, b, ...)."
    )


def no_signature(model: str) -> ModelError:
    """A callable does not say which arguments it takes."""
    return ModelError(
        f"the model {model} has no signature with x and named parameters: wrap it in a function, "
        f"for example def model(x, a, b): return a * {model}(b * x)."
    )


def no_x_argument(model: str, signature: object) -> ModelError:
    """A model takes no positional argument."""
    return ModelError(
        f"the model {model}{signature} takes no positional argument: write it as "
        "model(x, a, b, ...), with x first."
    )


def keyword_only_parameters(model: str, names: Sequence[str]) -> ModelError:
    """A model has parameters that it does not take by position."""
    return ModelError(
        f"the model {model} takes {join_names(names)} by keyword only, but parameters are passed "
        "by position: write them before the *, and fix a parameter's value with a function "
        "around the model rather than with functools.partial(model, name=value)."
    )


def unknown_parameter_count(model: str) -> ModelError:
    """The signature leaves the number of parameters open."""
    return ModelError(
        f"the model {model} takes *args, so that its signature does not say how many parameters "
        "there are: pass p0 with one starting value a parameter."
    )


def no_parameters(model: str) -> ModelError:
    """A model takes x only."""
    return ModelError(
        f"the model {model} has no parameters to fit: write it as model(x, a, b, ...)."
    )


def parameter_count(model: str, count: int, least: int, most: float) -> ModelError:
    """The model takes another number of parameters than was asked for."""
    if least == most:
        takes = f"{least}"
    elif most == float("inf"):
        takes = f"at least {least}"
    else:
        takes = f"{least} to {most:.0f}"
    return ModelError(
        f"the model {model} takes {takes} parameters, but {count} were given: pass one starting "
        "value for each."
    )


def duplicate_parameter_names(names: Sequence[str]) -> InputError:
    """Two parameters have one name."""
    twice = sorted({name for name in names if names.count(name) > 1})
    return InputError(
        f"the parameter names {join_names(names)} hold {join_names(twice)} more than once: give "
        "each parameter its own name."
    )


def model_raised(model: str, error: BaseException, rows: int) -> ModelError:
    """The model's own code failed."""
    return ModelError(
        f"the model {model} raised {type(error).__name__} when called with {rows} rows: {error}"
    )


def model_returned_nothing(model: str) -> ModelError:
    """The model has no return statement."""
    return ModelError(f"the model {model} returned None: end it with return and its values.")


def model_output_type(model: str, got: object) -> ModelError:
    """The model returned something that is no array of numbers."""
    return ModelError(
        f"the model {model} returned {got}: return an array of real numbers, one a row."
    )


def model_output_complex(model: str) -> ModelError:
    """The model returned complex numbers."""
    return ModelError(
        f"the model {model} returned complex numbers, but residuals are real: return the modulus, "
        "or the real and the imaginary part as rows of their own."
    )


def model_output_shape(model: str, got: tuple[int, ...], rows: int) -> ModelError:
    """The model returned another shape than one value a row."""
    hint = ""
    if len(got) > 1 and rows in got and all(size == 1 for size in got if size != rows):
        hint = ", for example with .ravel()"
    return ModelError(
        f"the model {model} returned shape {got} for {rows} rows: return shape ({rows},), one "
        f"value a row{hint}."
    )


def untraceable_call(model: str, call: str, twin: str | None, line: str) -> UntraceableModelError:
    """The model calls a function that needs the numbers themselves."""
    remedy = (
        f"use {twin}"
        if twin is not None
        else "JAX has no function of that name; write it with jax.numpy, or tabulate it and use "
        "jax.numpy.interp"
    )
    return UntraceableModelError(
        f"the model {model} calls {call}, which JAX cannot trace{line}: {remedy}."
    )


def untraceable_branch(model: str, line: str) -> UntraceableModelError:
    """The model takes a Python branch on a traced value."""
    return UntraceableModelError(
        f"the model {model} decides in Python (if, while, and, or, not, a < x < b) by the value of "
        f"an array, which JAX cannot trace{line}: use jax.numpy.where(condition, a, b), and "
        "combine conditions with &, | and ~, as in (a < x) & (x < b)."
    )


def untraceable_selection(model: str, line: str) -> UntraceableModelError:
    """The model selects rows by a traced mask."""
    return UntraceableModelError(
        f"the model {model} selects rows by a condition, whose number JAX cannot trace{line}: "
        "compute all rows and choose with where(condition, a, b)."
    )


def untraceable_assignment(model: str, why: str, line: str) -> UntraceableModelError:
    """The model changes an array in a way that has no counterpart without side effects."""
    return UntraceableModelError(
        f"the model {model} {why}, which JAX cannot trace{line}: make a new array, with "
        "where(condition, a, b), or x = x + 1 for x += 1, or start from zeros_like(x)."
    )


def untraceable_index(model: str, line: str) -> UntraceableModelError:
    """The model indexes a NumPy array by a traced value."""
    return UntraceableModelError(
        f"the model {model} indexes a NumPy array or a list by a traced value, which JAX cannot "
        f"trace{line}: index jax.numpy.asarray(table) instead."
    )


def untraceable_loop(model: str, line: str) -> UntraceableModelError:
    """The model loops over rows in Python."""
    return UntraceableModelError(
        f"the model {model} loops over the rows in Python, which JAX would unroll row by "
        f"row{line}: write it for the whole array, or use jax.vmap for a function of one row."
    )


def untraceable_conversion(model: str, what: str, line: str) -> UntraceableModelError:
    """The model needs the number behind a traced value."""
    return UntraceableModelError(
        f"the model {model} converts a traced value to {what}, which JAX cannot trace{line}: keep "
        "it an array, with functions of jax.numpy in place of math and NumPy."
    )


def unpicklable_model(model: str) -> ModelError:
    """The model cannot be sent to workers."""
    return ModelError(
        f"the model {model} cannot be pickled, so that it cannot be sent to Dask workers: define "
        "it without references to locks, open files, generators and the like, or fit data in "
        "memory."
    )


def model_data_differs(names: Sequence[str]) -> ModelError:
    """A module's data differ between the process that fits and one that computes."""
    return ModelError(
        f"the model uses {join_names(names)}, which differs between the process that started the "
        "fit and the one that evaluates the model, since each imports the module by itself: pass "
        "the value to the model as a closure or with functools.partial, or set it in the module."
    )


def not_row_wise(reason: str) -> NotRowWiseError:
    """Blocks of rows cannot be evaluated one by one."""
    return NotRowWiseError(
        f"the model is not row-wise: it {reason}, but data in chunks are evaluated chunk by chunk. "
        "Make each value depend on its own row of x only (pass what comes from all rows as a "
        "number, or as a coordinate of its own), or fit data in memory with strategy='standard'."
    )


# Checkpoints

CHECKSUM_MISMATCH = "its checksum does not match"


def resume_without_checkpoint() -> InputError:
    """There is no place to resume from."""
    return InputError(
        "resume=True needs checkpoint=..., the directory of the fit to go on with: a result's "
        "`checkpoint`, or the log of the interrupted fit, names it."
    )


def checkpoint_not_written(directory: object, cause: OSError) -> CheckpointWarning:
    """The disk is full, read-only, or gone."""
    return CheckpointWarning(
        f"no checkpoint could be written to {directory} ({cause}): the fit goes on without. Free "
        "some space or pass another checkpoint directory to be able to resume it."
    )


def checkpoint_damaged(path: object, cause: Exception) -> CheckpointWarning:
    """A checkpoint file is truncated or corrupted."""
    return CheckpointWarning(
        f"checkpoint {path} is damaged ({cause}): going back to the one before it, or to the start."
    )


def checkpoint_of_another_fit(
    path: object, differing: Sequence[str], saved: object, now: object
) -> InputError:
    """A checkpoint to resume from does not belong to this fit."""
    return InputError(
        f"checkpoint {path} is of another fit: {join_names(differing)} differ ({differing[0]} was "
        f"{saved!r} and is {now!r} now). Resume with the same problem, or pass another checkpoint "
        "directory."
    )


# Workflow


def count_invalid(name: str, value: object) -> InputError:
    """A number of things is not a positive whole number."""
    return InputError(f"{name} = {value!r}: pass a positive whole number.")


def seed_invalid(value: object) -> InputError:
    """What random numbers are to follow from is no whole number."""
    return InputError(
        f"seed = {value!r}: pass a whole number of at least zero. The same seed draws the same "
        "starts."
    )


def safety_factor_invalid(value: object) -> InputError:
    """The share of memory that may be used is not a share."""
    return InputError(
        f"safety_factor = {value!r}: pass a number above 0 and at most 1, the share of the "
        "available memory that a fit may use."
    )


def memory_invalid(name: str, value: object) -> InputError:
    """An amount of memory is not positive."""
    return InputError(
        f"{name} = {value!r}: pass a positive finite number of gigabytes (1e9 bytes), or leave it "
        "out to use the memory that is available."
    )


def gpu_memory_unknown() -> InputError:
    """A budget for a GPU was asked for, and there is none to ask."""
    return InputError(
        "use_gpu = True, but no GPU's memory is known: import jax first, in an installation that "
        "supports the GPU, or pass gpu_memory_gb or memory_limit_gb, or use_gpu=False."
    )


def workflow_for_lazy_data(workflow: str, strategy: str, choices: Sequence[str]) -> InputError:
    """A preset for data in memory was asked for Dask or Zarr arrays."""
    listed = " or ".join(repr(choice) for choice in choices)
    return InputError(
        f"workflow = {workflow!r} keeps the data in memory (strategy {strategy!r}), but a Dask or "
        f"Zarr array was passed: use workflow={listed}, or load small arrays first with .compute() "
        "or [...]."
    )


def data_exceed_memory(
    argument: str, value: str, data_gb: float, threshold_gb: float, choices: Sequence[str]
) -> InputError:
    """The rows cannot be kept in memory, which was asked for."""
    listed = " or ".join(repr(choice) for choice in choices)
    return InputError(
        f"{argument} = {value!r} keeps a copy of all rows in memory, {data_gb:.3g} GB, but a fit "
        f"may use {threshold_gb:.3g} GB: use workflow={listed}, or raise memory_limit_gb if there "
        "is more memory."
    )


def chunk_too_large(
    chunks: tuple[int, ...],
    chunk_bytes: int,
    memory_bytes: int,
    threads: int,
    fitting_bytes: int,
    fitting_chunks: tuple[int, ...],
) -> InputError:
    """A worker would run out of memory with one chunk a thread."""
    each = "1 thread" if threads == 1 else f"{threads} threads"
    return InputError(
        f"a chunk of shape {chunks} takes {in_units(chunk_bytes)} when decoded, coordinates and "
        f"sigma included, but a worker with {in_units(memory_bytes)} of memory and {each} has room "
        f"for chunks of {in_units(fitting_bytes)}: rechunk, for example y.rechunk({fitting_chunks})"
        f", or da.from_zarr(store, chunks={fitting_chunks}) for data in a store, or start workers "
        "with more memory or fewer threads."
    )


def in_units(n_bytes: float) -> str:
    """Write a size with three digits, in units of powers of 1000 bytes."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        # What three digits would round up to 1000 of a unit is written as 1 of the next.
        if n_bytes >= 0.9995 * 10**power:
            return f"{n_bytes / 10**power:.3g} {unit}"
    return f"{n_bytes:.0f} bytes"
