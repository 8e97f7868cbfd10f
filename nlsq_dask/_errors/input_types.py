"""Errors of values that are no arrays of real numbers: each kind has its own remedy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nlsq_dask._errors.kinds import InputError, InputTypeError, join_names, shown

if TYPE_CHECKING:
    import numpy as np

_LAZY_TABLE = "{name}.to_dask_array(lengths=True) makes it an array, and reads it once"
_ONE_VARIABLE = "pass one of its variables, for example {name}['{first}']"
_ONE_ORDER = "pass a list or an array, which have an order"
_CLUSTER = "dask.array.from_delayed({name}, shape=..., dtype=float) makes it an array"
_CODE = "pass data; the order of the arguments is fit(model, x, y)"

# What to do with a value, by the package and the name of its class. `first` is a name in it.
_REMEDIES: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("builtins", "NoneType"): "pass an array; np.arange(n) numbers n rows without a coordinate",
        ("builtins", "dict"): "pass its values as arrays; several coordinates are a tuple of them",
        ("builtins", "set"): _ONE_ORDER,
        ("builtins", "frozenset"): _ONE_ORDER,
        ("builtins", "generator"): "pass list({name}), as every pass reads the values again",
        ("builtins", "map"): "pass list({name}), as every pass reads the values again",
        ("builtins", "filter"): "pass list({name}), as every pass reads the values again",
        ("builtins", "zip"): "pass np.array(list({name})).T, as every pass reads the values again",
        ("builtins", "function"): _CODE,
        ("builtins", "str"): "open the file or store that it names, and pass the array in it",
        ("pathlib", "PurePath"): "open the file that it names, and pass the array in it",
        ("dask", "Delayed"): _CLUSTER,
        ("distributed", "Future"): _CLUSTER,
        ("dask", "Bag"): "dask.array.from_delayed makes an array of each of {name}.to_delayed()",
        ("dask", "Series"): _LAZY_TABLE,
        ("dask", "DataFrame"): _LAZY_TABLE,
        ("dask", "Index"): _LAZY_TABLE,
        ("dask_expr", "FrameBase"): _LAZY_TABLE,
        ("zarr", "AsyncArray"): "pass zarr.Array({name}), which reads without await",
        ("zarr", "Group"): "pass one of its arrays, for example {name}['{first}']",
        ("zarr", "AsyncGroup"): "pass one of the arrays of zarr.Group({name})",
        ("xarray", "Dataset"): _ONE_VARIABLE,
        ("xarray", "DataTree"): _ONE_VARIABLE,
        ("astropy", "Time"): "pass {name}.datetime64, or numbers such as {name}.mjd",
        ("astropy", "TimeDelta"): "pass {name}.to('s'), which has a unit",
        ("astropy", "BaseCoordinateFrame"): "pass its angles, such as ({name}.ra, {name}.dec)",
        ("astropy", "SkyCoord"): "pass its angles, such as ({name}.ra, {name}.dec)",
        ("scipy", "_spbase"): "{name}.toarray() makes it an array; zeros are observations, too",
        ("sparse", "SparseArray"): "{name}.todense() makes it an array",
        ("cupy", "ndarray"): "pass {name}.get(), which copies it from the GPU",
        ("torch", "Tensor"): "pass {name}.detach().cpu().numpy()",
    }
)

# Classes that NumPy converts in most cases.
_CONVERTED = frozenset({("torch", "Tensor")})


def not_an_array(name: str, cause: Exception) -> InputError:
    return InputError(
        f"{name} cannot be made an array ({cause}): pass numbers or an array of them."
    )


def ragged(name: str, sizes: Iterable[int]) -> InputError:
    """Lists of several lengths; `sizes` are two of them."""
    remedy = "concatenate them to one list of rows, or pad them with NaN and pass nan_policy='omit'"
    if name == "x":
        remedy = "coordinates of several shapes are a tuple of arrays that broadcast to y's shape"
    lengths = " and ".join(map(str, sizes))
    return InputError(
        f"{name} cannot be made an array: it is a list of lists that are {lengths} long. Pass "
        f"equally long ones: {remedy}."
    )


def no_array_kind(name: str, value: object, first: str = "") -> InputTypeError:
    """A value of a class that is no array of numbers; `first` is the name of one of its arrays."""
    classes = type(value).__mro__
    remedy = next(
        (_REMEDIES[key] for key in map(class_key, classes) if key in _REMEDIES),
        "pass a NumPy, Dask, Zarr or xarray array, or a list of numbers",
    )
    what = "None" if value is None else _a(type(value).__name__)
    if isinstance(value, str):
        what = f"the text {shown(value)}"
    done = remedy.format(name=name, first=first or "name")
    return InputTypeError(f"{name} is {what}, not an array of numbers: {done}.")


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"


def has_remedy(value: object) -> bool:
    """Whether a value is of a class that is known to be no array."""
    keys = map(class_key, type(value).__mro__)
    return any(key in _REMEDIES and key not in _CONVERTED for key in keys)


def class_key(kind: type) -> tuple[str, str]:
    """Package and name of a class."""
    return kind.__module__.partition(".")[0], kind.__name__


def not_real(name: str, dtype: np.dtype[Any]) -> InputTypeError:
    remedy = f"convert it, for example with {name}.astype(float)"
    if dtype.kind in "mM":
        difference = name if dtype.kind == "m" else f"({name} - {name}[0])"
        remedy = (
            "state it as a number of seconds, or of another unit, from an origin, for example "
            f"{difference} / np.timedelta64(1, 's')"
        )
    elif dtype.kind == "c" and name == "y":
        remedy = (
            "stack the two parts, y = np.concatenate([y.real, y.imag]), and the model's values "
            "likewise: with x = (np.concatenate([x, x]), np.repeat([0, 1], len(x))), a model of "
            "x, part = x returns np.where(part == 0, value.real, value.imag)"
        )
    elif dtype.kind == "c":
        remedy = f"pass the two parts as two arrays, {name}.real and {name}.imag"
    elif dtype.kind in "UST":
        remedy = f"it holds text; if the texts are numbers, {name}.astype(float) reads them"
    elif dtype.names is not None:
        fields = join_names([repr(field) for field in dtype.names])
        remedy = f"it has the fields {fields}; pass one of them, {name}[{dtype.names[0]!r}]"
    return InputTypeError(f"{name} has dtype {dtype}, but a fit needs real numbers: {remedy}.")


def object_values(name: str, index: Sequence[int], value: object) -> InputTypeError:
    """An array of Python objects; `value` is the first that is no number, if any is none."""
    place = f"{name}[{', '.join(map(str, index))}]"
    floats = f"np.asarray({name}, dtype=float)"
    if value is None:
        remedy = f"{floats} makes None NaN, whose rows nan_policy='omit' leaves out"
    elif isinstance(value, str | bytes):
        remedy = f"if the texts are numbers, {floats} reads them"
    elif isinstance(value, int | float) or hasattr(value, "as_integer_ratio"):
        remedy = f"{floats} makes numbers of float64 of the objects"
    elif hasattr(value, "to_timestamp"):  # a Period of pandas
        remedy = f"{name}.to_timestamp() gives times"
    elif hasattr(value, "year"):
        remedy = (
            "state times as numbers from an origin, for example "
            f"[(t - {name}[0]).total_seconds() for t in {name}]"
        )
    elif hasattr(value, "total_seconds"):
        remedy = f"state times as numbers, [t.total_seconds() for t in {name}]"
    else:
        remedy = f"pass one number for each row; {floats} converts what Python can convert"
    return InputTypeError(
        f"{name} has dtype object, but a fit needs real numbers: {place} is {shown(value)}, "
        f"{_a(type(value).__name__)}; {remedy}."
    )


def unequal_lengths(
    name: str, got: tuple[int, ...], expected: tuple[int, ...], of: str = "y"
) -> InputError:
    got, expected = tuple(got), tuple(expected)
    begin = f"{name} has shape {got} but {of} has shape {expected}: "
    last = name == "x" and got[:-1] == expected
    if last and len(got) == 2:
        return InputError(
            f"{begin}the coordinates are the columns of x, and have to be its rows: pass x.T, or a "
            "tuple of the columns."
        )
    if last:
        return InputError(
            f"{begin}the last dimension of x counts the coordinates, and the first has to: pass "
            "np.moveaxis(x, -1, 0), or a tuple of the coordinates."
        )
    added = len(expected) - len(got)
    if added > 0 and got == expected[: len(got)]:
        return InputError(
            f"{begin}dimensions are matched from the last to the first: pass "
            f"np.reshape({name}, {(*got, *(1,) * added)}), which broadcasts to {of}'s shape."
        )
    if math.prod(expected) == math.prod(got) and math.prod(got) == max(got, default=0):
        remedy = "np.ravel of both" if name == "x" else f"np.reshape({name}, {expected})"
        return InputError(
            f"{begin}both have {math.prod(got)} values, in other dimensions: pass {remedy}."
        )
    if name != "x":
        return InputError(f"{begin}pass an array of {of}'s shape, or one that broadcasts to it.")
    return InputError(
        f"{begin}pass an array of y's shape, one that broadcasts to it, (k, *{expected}) for k "
        "coordinates, or a tuple of coordinate arrays."
    )


def p0_shape(shape: tuple[int, ...], where: str = "p0") -> InputTypeError:
    what = "a fit has one value of a parameter for all rows: pass one number"
    if where == "p0":
        what = "a fit has one value of each parameter for all rows: pass p numbers, or by name"
    return InputTypeError(
        f"{where} has shape {tuple(shape)}, but {what}. If it is a map with a value for each "
        "pixel, fit_each takes it, and fits each pixel by itself."
    )


_EVALUATIONS = "max_nfev is the number of evaluations"
_EXACT = "derivatives are exact; leave the argument out"
_SIGMA = "sigma has the standard deviations"
_START = "p0 has the starting values"
_CORES = "a fit uses all cores; client= runs it on a cluster"
_CHUNKS = "chunks are those of the arrays, for example x.rechunk(...)"
_NORMAL = "steps come from sums over all rows; leave the argument out"

# Arguments of other libraries, and what they are here.
_ELSEWHERE = MappingProxyType(
    {
        "reduce_dims": "fit takes the rows along all dimensions of y; fit_each fits along dim=, "
        "each series by itself",
        "skipna": "nan_policy='omit' leaves out rows with NaN",
        "errors": "a fit that does not converge is returned, with result.success False",
        "coords": "pass the coordinates as x, for example fit(model, da['time'], da)",
        "func": "pass the model first, fit(model, x, y)",
        "param_names": "the parameters have the names in the signature of the model",
        "kwargs": "pass the options themselves, as arguments",
        "f": "pass the model first, fit(model, x, y)",
        "maxfev": _EVALUATIONS,
        "maxiter": _EVALUATIONS,
        "max_iter": _EVALUATIONS,
        "max_iterations": _EVALUATIONS,
        "epsfcn": _EXACT,
        "diff_step": _EXACT,
        "Dfun": "jac has the derivatives, shape (n, p)",
        "col_deriv": "jac has the derivatives, shape (n, p)",
        "diag": "x_scale has the sizes of the parameters, 1 / diag",
        "factor": "x_scale has the sizes of the parameters; the first step follows from them",
        "tr_solver": _NORMAL,
        "tr_options": _NORMAL,
        "jac_sparsity": _NORMAL,
        "yerr": _SIGMA,
        "sigma_y": _SIGMA,
        "params": _START,
        "initial": _START,
        "workers": _CORES,
        "n_jobs": _CORES,
        "scheduler": "dask.config.set(scheduler=...) chooses Dask's scheduler",
        "chunks": _CHUNKS,
        "chunk_size": _CHUNKS,
        "dtype": "sums are float64, whatever the dtype of the arrays",
        "weights": "sigma=1 / weights are the standard deviations",
        "args": "bind further arguments of the model with functools.partial, by keyword",
        "full_output": "the result has all numbers; nlsq_dask.curve_fit has full_output",
        "check_finite": "nan_policy says what becomes of NaN",
        "xdata": "pass x and y, in this order, after the model",
        "ydata": "pass x and y, in this order, after the model",
    }
)


def unknown_keyword(function: str, keyword: str, similar: Sequence[str]) -> InputTypeError:
    remedy = _ELSEWHERE.get(keyword)
    if remedy is None and similar:
        remedy = f"the nearest names are {join_names(similar)}"
    if remedy is None:
        remedy = f"help(nlsq_dask.{function}) lists the arguments"
    return InputTypeError(f"{function}() got an unexpected keyword argument {keyword!r}: {remedy}.")
