"""Problems with an answer that plain NumPy knows: models, random data, and their exact sums."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.model_spec import ModelSpec

DTYPES = ("f8", "f4", "f2", ">f8", "i8", "i2", "u1", "?")
MAX_LENGTH = {1: 2000, 2: 40, 3: 12}
#: Numbers of parameters. Each is another kernel to compile, for each structure of x, with weights
#: and without; the kernel's own tests have those of 1 to 12.
SIZES = (1, 3)


def decays(x, *theta):
    """Sum of exponentials in one number a row.

    Each term keeps its relative accuracy, and the weights of the coordinates are powers of two, so
    that nothing but the order of the sums separates two ways to compute it.
    """
    u = combined(x)
    return sum(jnp.exp(-t * u * ((k + 1) / 12)) for k, t in enumerate(theta))


def combined(x: Any) -> Any:
    """One number a row out of one or more coordinates."""
    if isinstance(x, tuple) or x.ndim == 2:
        return sum(c * 0.5**i for i, c in enumerate(x))
    return x


def computed(model, *arguments):
    """A model's values ``model(*arguments)`` in double precision."""
    with jax.enable_x64(True):
        return np.asarray(_values(model, *arguments))


@partial(jax.jit, static_argnums=0)
def _values(model, *arguments):
    """One compilation, where each operation outside of a compiled function is another."""
    return model(*arguments)


@dataclass(frozen=True)
class Problem:
    """Data in NumPy arrays, as a user would pass them, for ``decays``."""

    x: Any
    y: Any
    sigma: Any
    params: FloatArray
    basis: FloatArray

    @property
    def spec(self) -> ModelSpec:
        structure = "single"
        if isinstance(self.x, tuple):
            structure = "tuple"
        elif self.x.ndim == self.y.ndim + 1:
            structure = "stacked"
        k = 1 if structure == "single" else len(self.x)
        return prepare_model(decays, self.params.size, structure, k)

    @property
    def arrays(self) -> list[np.ndarray]:
        """All arrays that were passed."""
        coords = self.x if isinstance(self.x, tuple) else (self.x,)
        return [a for a in (*coords, self.y, self.sigma) if isinstance(a, np.ndarray)]


@dataclass(frozen=True)
class ExactSums:
    """Normal equations out of whole float64 arrays, and the size of what was summed in each."""

    gram: FloatArray
    gradient: FloatArray
    chi2: float
    column_sizes: FloatArray
    residual_size: float

    def assert_equal(self, sums: NormalEquations, n_rows: int, rtol: float = 1e-12) -> None:
        sizes = self.column_sizes
        assert sums.gram.dtype == sums.gradient.dtype == np.float64
        assert np.all(np.abs(sums.gram - self.gram) <= rtol * np.outer(sizes, sizes))
        assert np.all(np.abs(sums.gradient - self.gradient) <= rtol * sizes * self.residual_size)
        assert abs(sums.chi2 - self.chi2) <= rtol * self.residual_size**2
        assert sums.cost == 0.5 * sums.chi2
        assert (sums.n_points, sums.n_skipped) == (n_rows, 0)


def exact_sums(problem: Problem) -> ExactSums:
    """The sums for ``decays``, with its derivatives written out by hand."""
    shape = problem.y.shape
    x = problem.x
    if isinstance(x, tuple) or x.ndim == len(shape) + 1:
        u = sum(np.asarray(c, np.float64) * 0.5**i for i, c in enumerate(x))
    else:
        u = np.asarray(x, np.float64)
    u = np.broadcast_to(u, shape).ravel()
    y = problem.y.astype(np.float64).ravel()
    weights = np.ones(y.size)
    if problem.sigma is not None:
        weights = 1 / np.broadcast_to(np.asarray(problem.sigma, np.float64), shape).ravel()
    rates = np.arange(1, problem.params.size + 1) / 12
    terms = np.exp(-problem.params[:, None] * u * rates[:, None])
    jacobian = (-terms * u * rates[:, None] * weights).T @ problem.basis
    value = terms.sum(axis=0)
    residuals = (value - y) * weights
    return ExactSums(
        gram=jacobian.T @ jacobian,
        gradient=jacobian.T @ residuals,
        chi2=float(residuals @ residuals),
        column_sizes=np.linalg.norm(
            np.abs(terms * u * rates[:, None] * weights).T @ np.abs(problem.basis), axis=0
        ),
        residual_size=float(np.linalg.norm((np.abs(value) + np.abs(y)) * weights)),
    )


@st.composite
def problems(draw: st.DrawFn, sizes: tuple[int, ...] = SIZES) -> Problem:
    """Random shapes, dtypes and values of everything a user passes."""
    ndim = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, MAX_LENGTH[ndim])) for _ in range(ndim))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtypes = st.sampled_from(DTYPES)
    layout = draw(st.sampled_from(["single", "stacked", "tuple"]))
    x: Any
    if layout == "single":
        x = values(rng, draw(broadcasting_shapes(shape)), draw(dtypes))
    elif layout == "stacked":
        x = values(rng, (2, *shape), draw(dtypes))
    else:
        count = draw(st.integers(1, 3))
        x = tuple(values(rng, draw(broadcasting_shapes(shape)), draw(dtypes)) for _ in range(count))
    kind = draw(st.sampled_from(["none", "scalar", "array"]))
    sigma: Any = None
    if kind == "scalar":
        sigma = float(rng.uniform(0.5, 2))
    elif kind == "array":
        sigma_shape = draw(broadcasting_shapes(shape))
        sigma = rng.uniform(0.5, 3, sigma_shape).astype(draw(st.sampled_from(["f8", "f4", "f2"])))
        sigma = np.ceil(sigma).astype("i4") if draw(st.booleans()) else sigma
    p = draw(st.sampled_from(sizes))
    params = rng.uniform(0.1, 1, p)
    square = draw(st.booleans())
    basis = np.eye(p) if square else rng.normal(size=(p, p))
    return Problem(x, values(rng, shape, draw(dtypes)), sigma, params, basis)


@st.composite
def broadcasting_shapes(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to another: some lengths 1, some leading dimensions left out."""
    lengths = [n if draw(st.booleans()) else 1 for n in shape]
    return tuple(lengths[draw(st.integers(0, len(shape))) :])


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    """Random numbers between -4 and 4 that a dtype can hold."""
    numbers = rng.uniform(-4, 4, shape)
    if np.dtype(dtype).kind == "u":
        numbers = np.abs(numbers)
    if np.dtype(dtype).kind == "b":
        return np.asarray(numbers > 0)
    return np.asarray(numbers).astype(dtype)


def random_chunks(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """A chunking of a shape with few or many, equal or ragged, and also empty chunks."""
    chunks = []
    for n in shape:
        cuts = rng.integers(0, n + 1, size=rng.integers(0, 7))
        chunks.append(tuple(int(c) for c in np.diff([0, *sorted(cuts), n])))
    return tuple(chunks)


def plain_problem(n_rows: int = 5000, p: int = 3, *, sigma: bool = True) -> Problem:
    """Flat float64 data."""
    rng = np.random.default_rng(n_rows + p)
    return Problem(
        rng.uniform(0, 4, n_rows),
        rng.normal(1, 1, n_rows),
        rng.uniform(0.5, 2, n_rows) if sigma else None,
        rng.uniform(0.1, 1, p),
        np.eye(p),
    )


def with_params(problem: Problem, params: FloatArray) -> Problem:
    """The same data at other parameters."""
    return replace(problem, params=params)
