"""Errors of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nlsq_dask._errors.kinds import (
    InputError,
    InputTypeError,
    ModelError,
    NotRowWiseError,
    RowLoopError,
    UntraceableModelError,
    join_names,
)

# How to run a model that cannot be traced. Not true of a loss, as a loss is always traced.
_AS_IT_IS = (
    " Data in memory can be fitted with nlsq_dask.curve_fit, which calls the model as it is."
)


def not_callable(function: object) -> InputTypeError:
    return InputTypeError(
        f"the model is {function!r}, which cannot be called: pass a function model(x, a, b, ...)."
    )


def no_signature(model: str) -> ModelError:
    return ModelError(
        f"the model {model} has no signature with x and named parameters: wrap it in a function, "
        f"for example def model(x, a, b): return a * {model}(b * x)."
    )


def no_x_argument(model: str, signature: object) -> ModelError:
    return ModelError(
        f"the model {model}{signature} takes no positional argument: write it as "
        "model(x, a, b, ...), with x first."
    )


def keyword_only_parameters(model: str, names: Sequence[str]) -> ModelError:
    return ModelError(
        f"the model {model} takes {join_names(names)} by keyword only, but parameters are passed "
        "by position: write them before the *, and fix a parameter's value with a function "
        "around the model rather than with functools.partial(model, name=value)."
    )


def unknown_parameter_count(model: str) -> ModelError:
    return ModelError(
        f"the model {model} takes *args, so that its signature does not say how many parameters "
        "there are (Unable to determine number of fit parameters.): pass p0 with one starting "
        "value a parameter."
    )


def no_parameters(model: str) -> ModelError:
    return ModelError(
        f"the model {model} has no parameters to fit (Unable to determine number of fit "
        "parameters.): write it as model(x, a, b, ...)."
    )


def parameter_count(model: str, count: int, least: int, most: float) -> ModelError:
    if least == most:
        takes = f"{least}"
    elif most == float("inf"):
        takes = f"at least {least}"
    else:
        takes = f"{least} to {most:.0f}"
    noun = "parameter" if takes == "1" else "parameters"
    remedy = "pass one starting value for each"
    if takes == "1" and count > 1:
        remedy += (
            ". If the parameter is an array of all values, pass "
            "lambda x, *values: model(x, jnp.array(values))"
        )
    return ModelError(f"the model {model} takes {takes} {noun}, but {_given(count)}: {remedy}.")


def parameter_order(model: str, fitted: Sequence[str], taken: Sequence[str]) -> ModelError:
    return ModelError(
        f"the result has the parameters {join_names(fitted)}, but the model {model} takes "
        f"{join_names(taken)}, in another order: pass the model that was fitted, or a function "
        "that takes its parameters in that order."
    )


def _given(count: int) -> str:
    return "1 was given" if count == 1 else f"{count} were given"


def duplicate_parameter_names(names: Sequence[str]) -> InputError:
    twice = sorted({name for name in names if names.count(name) > 1})
    return InputError(
        f"the parameter names {join_names(names)} hold {join_names(twice)} more than once: give "
        "each parameter its own name."
    )


def model_raised(model: str, error: BaseException, rows: int | None) -> ModelError:
    given = "x and the start" if rows is None else f"{rows} rows"
    return ModelError(
        f"the model {model} raised {type(error).__name__} when called with {given}: {error}"
    )


def model_returned_nothing(model: str) -> ModelError:
    return ModelError(f"the model {model} returned None: end it with return and its values.")


def model_output_type(model: str, got: object) -> ModelError:
    return ModelError(
        f"the model {model} returned {got}: return an array of real numbers, one a row."
    )


def model_output_complex(model: str) -> ModelError:
    return ModelError(
        f"the model {model} returned complex numbers, but residuals are real: return the modulus, "
        "or the real and the imaginary part as rows of their own."
    )


def model_output_shape(model: str, got: tuple[int, ...], rows: int) -> ModelError:
    hint = ""
    if len(got) > 1 and rows in got and all(size == 1 for size in got if size != rows):
        hint = ", for example with .ravel()"
    return ModelError(
        f"the model {model} returned shape {got} for {rows} rows: return shape ({rows},), one "
        f"value a row{hint}."
    )


def untraceable_call(
    model: str, call: str, *, twin: str | None, line: str
) -> UntraceableModelError:
    remedy = (
        f"use {twin}"
        if twin is not None
        else "JAX has no function of that name; write it with jax.numpy, or tabulate it and use "
        "jax.numpy.interp"
    )
    return UntraceableModelError(
        f"the model {model} calls {call}, which JAX cannot trace{line}: {remedy}.{_AS_IT_IS}"
    )


def untraceable_branch(model: str, line: str) -> UntraceableModelError:
    return UntraceableModelError(
        f"the model {model} decides in Python (if, while, and, or, not, a < x < b) by the value of "
        f"an array, which JAX cannot trace{line}: use jax.numpy.where(condition, a, b), and "
        f"combine conditions with &, | and ~, as in (a < x) & (x < b).{_AS_IT_IS}"
    )


def untraceable_selection(model: str, line: str) -> UntraceableModelError:
    return UntraceableModelError(
        f"the model {model} selects rows by a condition, whose number JAX cannot trace{line}: "
        f"compute all rows and choose with where(condition, a, b).{_AS_IT_IS}"
    )


def untraceable_assignment(model: str, why: str, line: str) -> UntraceableModelError:
    """The model changes an array in a way that has no counterpart without side effects."""
    return UntraceableModelError(
        f"the model {model} {why}, which JAX cannot trace{line}: make a new array, with "
        "where(condition, a, b), or x = x + 1 for x += 1, or start from zeros_like(x)."
        f"{_AS_IT_IS}"
    )


def untraceable_index(model: str, line: str) -> UntraceableModelError:
    return UntraceableModelError(
        f"the model {model} indexes a NumPy array or a list by a traced value, which JAX cannot "
        f"trace{line}: index jax.numpy.asarray(table) instead.{_AS_IT_IS}"
    )


def untraceable_loop(model: str, line: str) -> RowLoopError:
    return RowLoopError(
        f"the model {model} loops over the rows in Python, which JAX would unroll row by "
        f"row{line}: write it for the whole array, or use jax.vmap for a function of one "
        f"row.{_AS_IT_IS}"
    )


def untraceable_conversion(model: str, what: str, line: str) -> UntraceableModelError:
    return UntraceableModelError(
        f"the model {model} converts a traced value to {what}, which JAX cannot trace{line}: keep "
        f"it an array, with functions of jax.numpy in place of math and NumPy.{_AS_IT_IS}"
    )


def untraceable_text(model: str, line: str) -> UntraceableModelError:
    return UntraceableModelError(
        f"the model {model} writes a parameter or an array as text (str, format, an f-string, %), "
        f"of which JAX knows no digits while it traces{line}: compute with the value itself, and "
        f"take files or tables by name outside the model.{_AS_IT_IS}"
    )


def untraceable_integer(model: str, line: str) -> UntraceableModelError:
    return UntraceableModelError(
        f"the model {model} uses a traced value as an integer (int, range, a shape, an index of a "
        f"list), which JAX cannot trace{line}: a number that is not fitted is passed as a closure "
        "or with functools.partial, and no parameter of the model; jax.numpy.floor(n) cuts off "
        f"digits, but has the derivative zero.{_AS_IT_IS}"
    )


def model_misread(
    model: str, row: int, coords: Sequence[float], expected: float, got: float
) -> UntraceableModelError:
    """Traced, the model computes something else than NumPy does."""
    at = ", ".join(f"{value:.6g}" for value in coords)
    return UntraceableModelError(
        f"the model {model} does not compute the same when JAX traces it: at row {row} (x = {at}) "
        f"it gives {got:.10g}, and {expected:.10g} when it is called with NumPy arrays. Arrays "
        "that are changed in place under several names, and results that depend on types or on "
        "the order of calls, are the usual causes: make new arrays (z = z + c for z += c), or "
        f"write the model with jax.numpy.{_AS_IT_IS}"
    )


def model_random(model: str) -> ModelError:
    return ModelError(
        f"the model {model} does not give the same value twice for the same parameters: it is "
        "random, or changes what it reads. Draw random numbers once outside the model, or from a "
        "generator that is seeded within it, and keep counters out of the value."
    )


def model_computes_otherwise(model: str) -> ModelError:
    """The model computes something else than when the fit was prepared."""
    return ModelError(
        f"the model {model} computes something else here and now than where the fit was prepared. "
        "It follows from something that is no part of it, such as a file, an environment "
        "variable, or a setting of a library, which a worker may not have, or which has changed "
        "since: pass the value to the model as a closure or with functools.partial, or fit anew."
    )


def unpicklable_model(model: str) -> ModelError:
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
        "number, or as a coordinate of its own), fit data in memory with strategy='standard', or "
        "name the dimension along which the model takes whole series with dim=."
    )


def not_row_wise_in_several_dimensions(reason: str, shape: tuple[int, ...]) -> NotRowWiseError:
    return NotRowWiseError(
        f"the model is not row-wise: it {reason}, but the rows of y of shape {shape} are passed "
        "to it one behind the other, so that it would run across the ends of the axes. Make "
        "each value depend on its own row of x only, or name the dimension along which the model "
        "takes whole series: fit(..., dim=) for one set of parameters, fit_each(..., dim=) for a "
        "fit of each series."
    )


def prediction_across_series(reason: str, shape: tuple[int, ...]) -> NotRowWiseError:
    return NotRowWiseError(
        f"the model is not row-wise: it {reason}, but the rows of x of shape {shape} would be "
        "passed to it one behind the other, across the ends of the axes. Pass the x of one series "
        "at a time, or use the result of fit(..., dim=), which knows the series."
    )


def jac_unknown(value: object, choices: Sequence[str]) -> InputError:
    quoted = join_names([repr(choice) for choice in choices])
    return InputError(
        f"jac = {value!r} is unknown: pass a function jac(x, a, b, ...) that returns the "
        f"derivatives of the model's values (n, p), None, or one of {quoted}, which here mean None."
    )


def jacobian_arguments(name: str, names: Sequence[str]) -> ModelError:
    return ModelError(
        f"jac = {name} does not take the model's arguments by position: write it as "
        f"jac(x, {', '.join(names)})."
    )


def of_argument(error: ModelError, argument: str, name: str) -> ModelError:
    """An error of a function that is examined as a model is, in its own words."""
    text = str(error).replace(f"the model {name}", f"{argument} = {name}")
    return type(error)(text.replace(_AS_IT_IS, "") if argument == "loss" else text)


def jacobian_output_shape(name: str, got: tuple[int, ...], rows: int, size: int) -> ModelError:
    return ModelError(
        f"jac = {name} returned shape {tuple(got)} for {rows} rows and {size} parameters: return "
        f"the derivatives of the model's values, shape ({rows}, {size}), one column a parameter."
    )


def loss_output_shape(name: str, got: tuple[int, ...], rows: int) -> ModelError:
    return ModelError(
        f"loss = {name} returned shape {tuple(got)} for {rows} values of z: return rho, rho' and "
        f"rho'' stacked, shape (3, {rows})."
    )


def model_argument_count(model: str, names: Sequence[str], count: int) -> InputTypeError:
    return InputTypeError(
        f"{model} takes x and {len(names)} parameters ({join_names(names)}), but {_given(count)}: "
        "pass one value for each."
    )


def model_coordinates(model: str, expected: int | None, count: int) -> InputTypeError:
    remedy = "one array" if expected == 1 else f"a tuple of {expected} arrays"
    return InputTypeError(
        f"{model} is a function of {expected} coordinate(s), but x has {count}: pass {remedy} as x."
    )


def model_prefix(prefix: object, name: str) -> InputError:
    return InputError(
        f"prefix is {prefix!r}, with which a parameter would be named {f'{prefix}{name}'!r}: pass "
        "a prefix of letters, digits and underscores that does not begin with a digit, for "
        "example 'line_'."
    )


def not_a_model(other: object) -> InputTypeError:
    return InputTypeError(
        f"{other!r} cannot be added to a model of nlsq_dask.models: add another of them (a number "
        "that is to be fitted is Constant()), or write a function that calls the model and adds "
        "the rest, def f(x, a, b, ...): return model(x, a, b) + ..."
    )


def empty_sum() -> InputError:
    return InputError("a sum of models needs at least one term: pass models, or add them with +.")


def sum_of_coordinates(counts: Mapping[str, int]) -> InputError:
    listed = ", ".join(f"{model} of {count}" for model, count in counts.items())
    return InputError(
        f"models of different numbers of coordinates cannot be added ({listed}): add models of "
        "the same x, or Constant(), which takes any."
    )


def guess_shapes(shapes: Sequence[tuple[int, ...]]) -> InputError:
    *coords, y = map(str, shapes)
    return InputError(
        f"x of shape {join_names(coords)} does not broadcast with y of shape {y}: pass one value "
        "of each coordinate for each observation."
    )


def guess_without_rows(model: str) -> InputError:
    return InputError(
        f"{model} cannot guess its parameters, since no row of x and y is finite: pass data, or "
        "starting values."
    )


def guess_failed(model: str, cause: object) -> ModelError:
    return ModelError(
        f"the guess of the model {model} failed ({cause}): pass p0, one starting value a parameter."
    )
