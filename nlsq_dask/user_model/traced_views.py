"""Views of NumPy arrays: which operations return views, and how to read and write them.

A view shows some elements of its base at other places, each element once. As an operation on values
a view is a linear map P whose rows are rows of a permutation. Its transpose puts the elements back:
writing to a view v = P b changes b to Pᵀ v where Pᵀ 1 is 1, and nothing else.

``reshape`` and ``ravel`` return views or copies by the layout of the elements in memory, which
traced arrays do not have. They certainly return views if both arrays have only one axis longer
than 1.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# fmt: off
# Functions whose results are views of their first argument, for any layout.
_ALWAYS = frozenset([
    "T", "atleast_1d", "atleast_2d", "atleast_3d", "expand_dims", "flip", "fliplr", "flipud",
    "matrix_transpose", "moveaxis", "permute_dims", "rollaxis", "rot90", "squeeze", "swapaxes",
    "transpose",
])
_SEVERAL = frozenset(["array_split", "dsplit", "hsplit", "split", "unstack", "vsplit"])
# Functions whose results are read-only views.
_READ_ONLY = frozenset(["broadcast_arrays", "broadcast_to", "diag", "diagonal"])
_BY_LAYOUT = frozenset(["ravel", "reshape"])
_PARTS = frozenset(["imag", "real", "real_if_close"])
# fmt: on


@dataclass(frozen=True)
class View:
    """The value of a view from its base, and the new value of the base from that of the view."""

    read: Callable[[jax.Array], jax.Array]
    write: Callable[[jax.Array, jax.Array], jax.Array] | None


def is_basic(index: Any) -> bool:
    """Whether NumPy returns a view for an index."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(
        part is None
        or part is ...
        or isinstance(part, slice)
        or (isinstance(part, int | np.integer) and not isinstance(part, bool))
        for part in parts
    )


def view_of_index(index: Any) -> View:
    """View by a basic index."""
    return View(operator.itemgetter(index), lambda base, new: base.at[index].set(new))


def views_of_function(
    name: str, args: Sequence[Any], kwargs: dict[str, Any], method: bool = False
) -> list[View | None] | None:
    """Views that a function returns of its first argument.

    Parameters
    ----------
    name : str
        Name of a function, a method or an attribute.
    args, kwargs
        Arguments, the array first.
    method : bool
        Whether this is a call of a method.

    Returns
    -------
    list of View or None, or None
        A View for each result; None for a result that may be a view or a copy. None in place of the
        list if all results are copies.
    """
    # Scalars have no memory to share, and a list becomes a new array.
    if not args or not hasattr(args[0], "__jax_array__") or args[0].ndim == 0:
        return None
    array, rest = args[0], list(args[1:])

    def apply(value: jax.Array) -> Any:
        if name == "T":
            return value.T
        if method:
            return getattr(value, name)(*rest, **kwargs)
        return getattr(jnp, name)(value, *rest, **kwargs)

    if name in _ALWAYS:
        # Of several arguments, atleast_1d and its like make several views.
        return [_linear(apply)] if not name.startswith("atleast") or len(args) == 1 else [None]
    if name in _SEVERAL:
        count = len(jax.eval_shape(apply, _shape(array)))
        return [_linear(partial(lambda i, value: apply(value)[i], i)) for i in range(count)]
    if name in _READ_ONLY:
        if name == "diag" and array.ndim == 1:  # a new matrix
            return None
        return [View(apply, None)] if name != "broadcast_arrays" else [None]
    if name in _BY_LAYOUT:
        if sum(size > 1 for size in array.shape) > 1:
            return [None]
        result = jax.eval_shape(apply, _shape(array))
        return [_linear(apply) if sum(size > 1 for size in result.shape) <= 1 else None]
    return [_part(name, array)] if name in _PARTS else None


def _shape(array: Any) -> Any:
    return jax.core.ShapedArray(array.shape, array.dtype)


def _linear(apply: Callable[[jax.Array], jax.Array]) -> View | None:
    """View by an operation that moves elements and may omit some."""

    def write(base: jax.Array, new: jax.Array) -> jax.Array:
        places = jnp.arange(base.size).reshape(base.shape)
        shown = jnp.zeros(base.size, bool).at[apply(places).ravel()].set(True)
        moved = jnp.zeros(base.size, base.dtype).at[apply(places).ravel()].set(new.ravel())
        return jnp.where(shown.reshape(base.shape), moved.reshape(base.shape), base)

    def transposed(base: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(base.dtype, jnp.inexact):
            return write(base, new)
        back = jax.linear_transpose(apply, _shape(base))
        moved: jax.Array = back(new)[0]
        if new.size == base.size:
            return moved
        shown: jax.Array = back(jnp.ones_like(new))[0]
        return jnp.where(shown != 0, moved, base)

    return View(apply, transposed)


def _part(name: str, array: Any) -> View | None:
    """View of the real or the imaginary part."""
    if not np.issubdtype(array.dtype, np.complexfloating):
        return View(lambda value: value, lambda _, new: new) if name != "imag" else None
    if name == "real":
        return View(jnp.real, lambda base, new: jax.lax.complex(new, jnp.imag(base)))
    if name == "imag":
        return View(jnp.imag, lambda base, new: jax.lax.complex(jnp.real(base), new))
    return None
