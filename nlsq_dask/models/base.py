"""Base of all models: a value, parameters with names, sums, and first guesses.

A model is immutable. It consists of its class and its prefix, or of the terms of its sum. Only
these are pickled, so that equal models give equal bytes in every process.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask import _errors
from nlsq_dask.models.search import FloatArray, Samples, linear_fit

# Times that each term of a sum is searched again, next to all other terms.
N_SWEEPS = 2

# In the first sweep, a wide peak that covers two peaks may explain most. A narrower peak that
# explains two thirds as much is preferred: it is one of the two.
SLACK = 1 / 3


class Model:
    """A model ``f(x; θ)`` that can be called, fitted, added to others, and guesses its parameters.

    Attributes
    ----------
    names : tuple of str, length p
        Names of the parameters, in the order in which the model takes them.
    """

    names: tuple[str, ...]
    __signature__: inspect.Signature

    # Number of coordinates in x; None takes any.
    n_coords: int | None = 1

    def __call__(self, x: Any, /, *params: Any) -> Any:
        """Value of the model.

        Parameters
        ----------
        x : array_like, shape (...), or tuple of such
            Coordinates.
        *params : float or 0-d array
            Parameters, in the order of `names`.

        Returns
        -------
        array, shape (...)
            A JAX array, in the precision of the arguments, if an argument is a JAX array. Otherwise
            a NumPy array of float64.

        Raises
        ------
        InputTypeError
            If the number of parameters or of coordinates is not the model's.
        """
        if len(params) != len(self.names):
            raise _errors.model_argument_count(repr(self), self.names, len(params))
        coords = self._coords(x)
        if any(isinstance(argument, jax.Array) for argument in (*coords, *params)):
            return self.value(jnp, coords, *params)
        numbers = [np.asarray(argument, dtype=np.float64) for argument in (*coords, *params)]
        with np.errstate(all="ignore"):
            k = len(coords)
            return np.asarray(self.value(np, tuple(numbers[:k]), *numbers[k:]))

    def _coords(self, x: Any) -> tuple[Any, ...]:
        """The coordinates in x, each an array."""
        if not isinstance(x, tuple):
            x = (x,) if self.n_coords in (1, None) else tuple(x)
        if self.n_coords not in (None, len(x)):
            raise _errors.model_coordinates(repr(self), self.n_coords, len(x))
        return tuple(c if isinstance(c, jax.Array) else np.asarray(c) for c in x)

    def value(self, xp: ModuleType, coords: tuple[Any, ...], *params: Any) -> Any:
        """Value of the model, computed by a module with NumPy's functions."""
        raise NotImplementedError

    @property
    def terms(self) -> tuple[Term, ...]:
        """Terms of the sum; the model itself if it is none."""
        raise NotImplementedError

    def guess(self, x: Any, y: Any) -> dict[str, float]:
        """Starting values for a fit.

        The shape of a term holds the parameters in which the term is not linear. The guess searches
        the shape on a grid, with the linear parameters of all terms at their least-squares values:
        variable projection (Golub & Pereyra, SIAM J. Numer. Anal. 10, 1973). It searches the terms
        of a sum from left to right, and then again next to all other terms. If there are terms of
        several kinds, each is the first one once, and the search that explains most counts. It is
        deterministic.

        Parameters
        ----------
        x : array_like or tuple of array_like
            Coordinates in the model's structure, in any order; they broadcast with y.
        y : array_like, shape (...)
            Observations. Rows that are not finite are left out.

        Returns
        -------
        dict of str to float
            One value for each of `names`, in their order.

        Raises
        ------
        InputError
            If the shapes do not broadcast, or if no row is finite.
        InputTypeError
            If the number of coordinates is not the model's.
        """
        coords, values = self._finite_rows(x, y)
        terms = self.terms
        shapes = _search_shapes(terms, coords, values)
        blocks = [_columns(*pair, coords) for pair in zip(terms, shapes, strict=True)]
        coefficients = linear_fit(np.concatenate(blocks, axis=1), values)
        params: list[float] = []
        for term, shape, block in zip(terms, shapes, blocks, strict=True):
            own, coefficients = np.split(coefficients, [block.shape[1]])
            params.extend(float(value) for value in term.assemble(shape, own))
        return dict(zip(self.names, params, strict=True))

    def _finite_rows(self, x: Any, y: Any) -> tuple[tuple[FloatArray, ...], FloatArray]:
        """Coordinates and observations as rows (n,)."""
        if self.n_coords is None and not isinstance(x, tuple) and np.ndim(x) > np.ndim(y):
            x = tuple(x)  # coordinates stacked
        arrays = [np.asarray(array, dtype=np.float64) for array in (*self._coords(x), y)]
        try:
            rows = [np.ravel(array) for array in np.broadcast_arrays(*arrays)]
        except ValueError as error:
            raise _errors.guess_shapes([array.shape for array in arrays]) from error
        finite = np.logical_and.reduce([np.isfinite(row) for row in rows])
        if not finite.any():
            raise _errors.guess_without_rows(repr(self))
        *coords, values = [row[finite] for row in rows]
        return tuple(coords), values

    def __add__(self, other: object) -> Sum:
        if not isinstance(other, Model):
            raise _errors.not_a_model(other)
        return Sum((*self.terms, *other.terms))

    def __radd__(self, other: object) -> Sum:
        raise _errors.not_a_model(other)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash(self.__reduce__())

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        raise NotImplementedError

    def _set_names(self, names: Sequence[str]) -> None:
        kind = inspect.Parameter.POSITIONAL_ONLY
        self.names = tuple(names)
        self.__signature__ = inspect.Signature(
            [inspect.Parameter(name, kind) for name in ("x", *names)]
        )


class Term(Model):
    """A model that is not a sum.

    Its shape is a part of its parameters. For a given shape, the value is linear in the other
    parameters, which are the coefficients of its `columns`. By default the first parameter is
    linear and the others are the shape.
    """

    # Names without prefix. No name ends in a digit, so that numbered names are unique.
    base_names: ClassVar[tuple[str, ...]]

    # Whether the term is linear in all of its parameters, so that it has no shape.
    is_linear: ClassVar[bool] = False

    def __init__(self, *, prefix: str = "") -> None:
        names = [f"{prefix}{name}" for name in self.base_names]
        if not isinstance(prefix, str) or not all(name.isidentifier() for name in names):
            raise _errors.model_prefix(prefix, self.base_names[0])
        # One object for equal strings: pickle writes a repeated object as a reference.
        self._prefix = sys.intern(prefix)
        self._set_names(names)

    @property
    def terms(self) -> tuple[Term, ...]:
        """The model itself."""
        return (self,)

    @property
    def shape_places(self) -> tuple[int, ...]:
        """Places of the shape among the parameters."""
        return tuple(range(1, len(self.base_names)))

    def columns(self, coords: tuple[Any, ...], *shape: Any) -> Sequence[Any]:
        """Functions of x whose linear combinations are the values of the model with the shape."""
        return (self.value(np, coords, 1.0, *shape),)

    def assemble(self, shape: FloatArray, coefficients: FloatArray) -> Sequence[float]:
        """Parameters of a shape and the coefficients of its columns."""
        return (*coefficients, *shape)

    def search(self, samples: Samples) -> FloatArray:
        """Shape that explains the samples best."""
        raise NotImplementedError

    def coarse_shapes(self, coords: tuple[FloatArray, ...]) -> FloatArray:  # (g, s)
        """Shapes one of which is near enough to the best for a fit to start from.

        Parameters
        ----------
        coords : tuple of ndarray, each of shape (n,)
            Finite coordinates; a single one in ascending order.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        prefix = f"prefix={self._prefix!r}" if self._prefix else ""
        return f"{type(self).__name__}({prefix})"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _new_term, (type(self), self._prefix)


class Sum(Model):
    """Sum of models, the result of ``+``.

    Terms that share a parameter name are numbered from left to right, and the number is appended
    to all of their names: ``Gaussian() + Gaussian() + Constant()`` has ``amplitude_1``,
    ``center_1``, ``sigma_1``, ``amplitude_2``, ``center_2``, ``sigma_2`` and ``offset``.

    Parameters
    ----------
    terms : sequence of models
        The terms, with their parameters in this order. A sum counts as its terms.

    Attributes
    ----------
    names : tuple of str, length p
        Names of the parameters.
    terms : tuple of models
        The terms.

    Raises
    ------
    InputError
        If the terms have different numbers of coordinates, or if there are no terms.
    InputTypeError
        If a term is not a model.

    Examples
    --------
    >>> from nlsq_dask import models
    >>> model = models.Gaussian(prefix="line_") + models.Linear()
    >>> model.names
    ('line_amplitude', 'line_center', 'line_sigma', 'slope', 'intercept')
    >>> (models.Gaussian() + models.Lorentzian()).names  # doctest: +NORMALIZE_WHITESPACE
    ('amplitude_1', 'center_1', 'sigma_1', 'amplitude_2', 'center_2', 'gamma_2')
    """

    def __init__(self, terms: Sequence[Model]) -> None:
        flat: list[Term] = []
        for term in terms:
            if not isinstance(term, Model):
                raise _errors.not_a_model(term)
            flat.extend(term.terms)
        if not flat:
            raise _errors.empty_sum()
        counts = {term.n_coords: term for term in flat if term.n_coords is not None}
        if len(counts) > 1:
            raise _errors.sum_of_coordinates({repr(term): n or 0 for n, term in counts.items()})
        self._terms = tuple(flat)
        self.n_coords = next(iter(counts), None)
        self._set_names(_unique_names(flat))

    @property
    def terms(self) -> tuple[Term, ...]:
        """Terms, from left to right."""
        return self._terms

    def value(self, xp: ModuleType, coords: tuple[Any, ...], *params: Any) -> Any:
        """Sum of the terms' values."""
        total: Any = 0.0
        for term in self._terms:
            count = len(term.names)
            total = total + term.value(xp, coords, *params[:count])
            params = params[count:]
        return total

    def __repr__(self) -> str:
        return " + ".join(map(repr, self._terms))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # Pickle classes and prefixes. A repeated term would be pickled as a reference to the first,
        # with other bytes than two equal terms.
        return _new_sum, tuple((type(term), term.__reduce__()[1][1]) for term in self._terms)


def _new_term(cls: type[Term], prefix: str) -> Term:
    return cls(prefix=prefix)


def _new_sum(*parts: tuple[type[Term], str]) -> Sum:
    return Sum([cls(prefix=prefix) for cls, prefix in parts])


def _unique_names(terms: Sequence[Term]) -> list[str]:
    """Names of all terms' parameters, numbered where terms share one."""
    owners: dict[str, set[int]] = {}
    for i, term in enumerate(terms):
        for name in term.names:
            owners.setdefault(name, set()).add(i)
    sharing = sorted(set().union(*(group for group in owners.values() if len(group) > 1)))
    names: list[str] = []
    for i, term in enumerate(terms):
        suffix = f"_{sharing.index(i) + 1}" if i in sharing else ""
        names.extend(f"{name}{suffix}" for name in term.names)
    return names


def _columns(term: Term, shape: FloatArray, coords: tuple[FloatArray, ...]) -> FloatArray:
    """Columns (n, c) of a term on all rows."""
    with np.errstate(all="ignore"):
        parts = [np.broadcast_to(part, coords[0].shape) for part in term.columns(coords, *shape)]
    return np.stack(parts, axis=1)


def search_orders(terms: Sequence[Term]) -> list[list[int]]:
    """Orders in which the terms that have a shape are searched.

    The first term that is searched takes what explains most. So each term is the first one once,
    if there are terms of several kinds: one kind of peak would take the place of another.
    """
    searched = [i for i, term in enumerate(terms) if not term.is_linear]
    if len({type(terms[i]) for i in searched}) < 2:
        return [searched]
    return [searched[i:] + searched[:i] for i in range(len(searched))]


def _search_shapes(
    terms: Sequence[Term], coords: tuple[FloatArray, ...], y: FloatArray
) -> list[FloatArray]:
    """Shape of each term, from the order of the search that explains most."""
    found = [_searched_in(order, terms, coords, y) for order in search_orders(terms)]
    left = [_left(terms, shapes, coords, y) for shapes in found] if len(found) > 1 else [0.0]
    return found[int(np.argmin(left))]


def _left(
    terms: Sequence[Term],
    shapes: Sequence[FloatArray],
    coords: tuple[FloatArray, ...],
    y: FloatArray,
) -> float:
    """Sum of squares that terms of these shapes leave."""
    pairs = zip(terms, shapes, strict=True)
    columns = np.concatenate([_columns(term, shape, coords) for term, shape in pairs], axis=1)
    rest = y - columns @ np.linalg.lstsq(columns, y)[0]
    return float(rest @ rest)


def _searched_in(
    order: Sequence[int], terms: Sequence[Term], coords: tuple[FloatArray, ...], y: FloatArray
) -> list[FloatArray]:
    """Shape of each term, searched next to the other terms, in an order."""
    nothing = np.empty(0)
    shapes = [nothing for _ in terms]
    blocks = [
        _columns(term, nothing, coords) if term.is_linear else np.empty((y.size, 0))
        for term in terms
    ]
    n_sweeps = N_SWEEPS if len(order) > 1 else 1
    for sweep in range(n_sweeps):
        slack = 0.0 if sweep == n_sweeps - 1 else SLACK
        for i in order:
            others = np.concatenate([*blocks[:i], *blocks[i + 1 :], np.empty((y.size, 0))], axis=1)
            shapes[i] = terms[i].search(Samples(coords, y, others, np.ones_like(y), slack))
            blocks[i] = _columns(terms[i], shapes[i], coords)
    return shapes
