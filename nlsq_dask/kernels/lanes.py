"""The compiled program that fits tiles of series.

A tile holds L series of m rows, one series a lane. The program of a tile is a loop whose body
evaluates the sums at the trial of each lane (:mod:`nlsq_dask.kernels.lane_sums`) and takes one
step (:mod:`nlsq_dask.core.lane_step`). The loop leaves a tile where few of its lanes still run: the
caller gathers these from many tiles (:mod:`nlsq_dask.engines.lane_search`). What a lane computes
does not depend on its neighbours: all tiles of a fit have one shape, and each step comes from the
same code.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.lane_step import (
    FIRST_DAMPING,
    RUNNING,
    LaneOptions,
    Lanes,
    LaneState,
    next_state,
)
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.resources import XLA_VECTOR_BITS
from nlsq_dask.kernels.compiled import MAX_KERNELS, CompiledKernel
from nlsq_dask.kernels.devices import DeviceChoice, find_devices
from nlsq_dask.kernels.lane_sums import UNROLLED, LaneModel, LaneRows
from nlsq_dask.user_model.linear import linear_parameters
from nlsq_dask.user_model.lru import LruTable

# Lanes of a tile. The sums of a tile and four of its rows fit a first-level cache, for models of a
# few parameters: with 512 lanes a fit of ``benchmarks.each`` takes a sixth longer, and with 128 a
# twentieth.
LANES = 256

# Tiles of one call of the program: a call takes some 0.1 ms, as long as a third of a tile.
TILES = 16

# Bytes of the values and derivatives of a tile, for models that take whole series: they cannot be
# computed in slices of rows.
WHOLE_BYTES = 1 << 25

# Least lanes of a tile.
LEAST_LANES = 8


@dataclass(frozen=True, slots=True)
class TileShape:
    """Sizes of a tile; a function of the series' length and of the model alone.

    Attributes
    ----------
    rows : int
        Rows of a series, with padding.
    lanes : int
    tiles : int
        Tiles of one call.
    """

    rows: int
    lanes: int
    tiles: int

    @classmethod
    def of(cls, model: LaneModel) -> TileShape:
        """Sizes of the tiles of a model."""
        size, rows = model.matrix.shape[1], model.n_rows
        padded = -(-rows // UNROLLED) * UNROLLED
        lanes = LANES
        if not model.row_wise:
            while lanes > LEAST_LANES and 8 * lanes * rows * (size + 1) > WHOLE_BYTES:
                lanes //= 2
        return cls(padded, lanes, TILES)


class LaneData(NamedTuple):
    """Tiles of series as NumPy arrays; B tiles of m rows and L lanes.

    Attributes
    ----------
    y : ndarray, shape (B, m, L)
        NaN where a row is left out.
    coords : tuple of ndarray, each (m,) or (B, m, L)
    weights : ndarray, shape (m,) or (B, m, L), or None
    constants : ndarray, shape (B, c, L)
        Rows in the order of :func:`constant_rows`.
    """

    y: FloatArray
    coords: tuple[FloatArray, ...]
    weights: FloatArray | None
    constants: FloatArray


class ConstantRows(NamedTuple):
    """Rows of ``LaneData.constants``, which hold the numbers of a lane."""

    lower: slice
    upper: slice
    offset: slice
    n_points: int
    variance: int
    square: int
    scale: int
    base: slice
    basis: slice

    def height(self, *, based: bool) -> int:
        """Number of rows, those of a basis included if there is one."""
        return int(self.basis.stop if based else self.base.start)


def constant_rows(n_params: int, size: int) -> ConstantRows:
    """Rows for a model with p parameters, of which q are free."""
    last = 2 * size + n_params
    return ConstantRows(
        lower=slice(0, size),
        upper=slice(size, 2 * size),
        offset=slice(2 * size, last),
        n_points=last,
        variance=last + 1,
        square=last + 2,
        scale=last + 3,
        base=slice(last + 4, last + 4 + size),
        basis=slice(last + 4 + size, last + 4 + size + size * (size + 1) // 2),
    )


def state_rows(size: int) -> tuple[slice | int, ...]:
    """Rows of a packed state (s, L), in the order of the fields of LaneState."""
    lengths = [size, size, size * (size + 1) // 2, size, size]
    rows: list[slice | int] = []
    at = 0
    for n in lengths:
        rows.append(slice(at, at + n))
        at += n
    rows.extend(range(at, at + len(LaneState._fields) - len(lengths)))
    return tuple(rows)


def n_state_rows(size: int) -> int:
    """Number of rows of a packed state."""
    return 4 * size + size * (size + 1) // 2 + len(LaneState._fields) - 5


def unpacked_state(packed: FloatArray, size: int) -> LaneState:
    """Views of the rows of packed states (s, ...); vectors are arrays (q, ...)."""
    fields: list[Any] = [packed[rows] for rows in state_rows(size)]
    return LaneState(*fields)


def fresh_states(
    start: FloatArray,
    running: NDArray[np.bool_],
    status: FloatArray,
    out: FloatArray | None = None,
) -> FloatArray:
    """Packed states (s, L) of lanes at their starts (q, L), in `out` if it is given.

    Lanes that do not run have a status.
    """
    size, lanes = start.shape
    packed = np.empty((n_state_rows(size), lanes)) if out is None else out
    packed.fill(0.0)
    state = unpacked_state(packed, size)
    rows = state_rows(size)
    packed[rows[0]] = packed[rows[1]] = start
    state.chi2[...] = state.distance[...] = state.length[...] = np.inf
    state.damping[...], state.growth[...] = FIRST_DAMPING, 2.0
    state.status[...] = np.where(running, float(RUNNING), status)
    return packed


class LaneKernel(CompiledKernel):
    """The program that fits tiles of series of one model.

    Parameters
    ----------
    model : LaneModel
    devices : tuple of jax.Device
    eps : float
        Precision of the model's values.
    vector_bits : int
        Bits of the vectors of a CPU that the code prefers. A lane has the same bits for any width.
    """

    is_large: ClassVar[bool] = True

    def __init__(
        self,
        model: LaneModel,
        devices: tuple[jax.Device, ...],
        eps: float,
        vector_bits: int = XLA_VECTOR_BITS,
    ) -> None:
        super().__init__(model.spec, None, devices, not model.row_wise, vector_bits)
        self._model = model
        self._eps = eps
        self._search = self._jitted(self._searched)

    @cached_property
    def nonlinear(self) -> NDArray[np.bool_]:
        """Free parameters (q,) in which the model is not linear."""
        others = np.ones(len(self._model.matrix), np.bool_)
        others[list(linear_parameters(self._model.spec))] = False
        found: NDArray[np.bool_] = (self._model.matrix[others] != 0.0).any(axis=0)
        return found

    def __call__(
        self,
        states: FloatArray,
        data: LaneData,
        stat_tol: float,
        max_nfev: int,
        least: int,
        tiles: int,
    ) -> FloatArray:
        """Go on with the searches of tiles.

        Parameters
        ----------
        states : ndarray, shape (B, s, L)
            Packed states.
        data : LaneData
        stat_tol : float
        max_nfev : int
        least : int
            A tile is left when no more than so many of its lanes run.
        tiles : int
            Only so many of the tiles, the first, hold series.

        Returns
        -------
        ndarray, shape (B, s, L)
            Zeros for the tiles that hold no series.
        """
        numbers = np.array([stat_tol, float(max_nfev), float(least), float(tiles)])
        shapes = tuple(c.shape for c in data.coords)
        weights = None if data.weights is None else data.weights.shape
        layout = (states.shape, data.y.shape, shapes, weights)
        return self._run(self._search, (), (numbers, states, data), layout)

    def _searched(self, arguments: tuple[jax.Array, jax.Array, LaneData]) -> jax.Array:
        self._count_compilation()
        numbers, states, data = arguments
        by_tile = [jnp.ndim(c) == 3 for c in data.coords]
        weights_by_tile = data.weights is not None and jnp.ndim(data.weights) == 3
        options = LaneOptions(numbers[0], numbers[1], self._eps)  # type: ignore[arg-type]

        def add_tile(i: jax.Array, found: jax.Array) -> jax.Array:
            def own(array: FloatArray, varies: bool = True) -> jax.Array:
                return jnp.asarray(array)[i] if varies else jnp.asarray(array)

            constants = own(data.constants)
            rows = LaneRows(
                own(data.y),
                tuple(map(own, data.coords, by_tile)),
                None if data.weights is None else own(data.weights, weights_by_tile),
                **self._own(constants),
            )
            last = self._tile(states[i], rows, constants, options, numbers[2])
            updated: jax.Array = jax.lax.dynamic_update_index_in_dim(found, last, i, 0)
            return updated

        # A loop over so many tiles as there are: the others cost nothing.
        tiles = numbers[3].astype(jnp.int32)
        found: jax.Array = jax.lax.fori_loop(0, tiles, add_tile, jnp.zeros_like(states))
        return found

    def _own(self, constants: jax.Array) -> dict[str, Any]:
        n_params, size = self._model.matrix.shape
        where = constant_rows(n_params, size)
        own = {"scale": constants[where.scale], "offset": tuple(constants[where.offset])}
        if self._model.based:
            own |= {"base": tuple(constants[where.base]), "basis": tuple(constants[where.basis])}
        return own

    def _tile(
        self,
        packed: jax.Array,
        rows: LaneRows,
        constants: jax.Array,
        options: LaneOptions,
        least: jax.Array,
    ) -> jax.Array:
        n_params, size = self._model.matrix.shape
        where = constant_rows(n_params, size)
        lanes = Lanes(
            tuple(constants[where.lower]),
            tuple(constants[where.upper]),
            constants[where.n_points],
            constants[where.variance],
            constants[where.square],
        )

        # XLA runs operations that do not wait for each other in several threads. Of states that are
        # one array there are few: with two cores a call takes a tenth less processor time.
        def goes_on(packed: jax.Array) -> jax.Array:
            return jnp.sum(packed[-1] == RUNNING) > least

        def step(packed: jax.Array) -> jax.Array:
            parts = [packed[own] for own in state_rows(size)]
            fields: list[Any] = [tuple(p) if p.ndim == 2 else p for p in parts]
            state = LaneState(*fields)
            sums = self._model.sums(rows, state.trial)
            return jnp.stack(jax.tree.leaves(next_state(jnp, state, sums, lanes, options)))

        last: jax.Array = jax.lax.while_loop(goes_on, step, packed)
        return last


_kernels: LruTable[tuple[object, ...], LaneKernel] = LruTable(MAX_KERNELS)


def lane_kernel(
    model: LaneModel, device: DeviceChoice, eps: float, vector_bits: int = XLA_VECTOR_BITS
) -> LaneKernel:
    """The program of a model in this process, made at the first call.

    Parameters
    ----------
    model : LaneModel
    device : str, tuple of str or None
    eps : float
    vector_bits : int
    """
    target = find_devices(device)
    n_rows = None if model.row_wise else model.n_rows
    variant = (n_rows, model.differenced, model.based)
    identity = (*model_identity(model), *variant, target, eps, vector_bits)
    kept = _kernels.get(identity)
    if kept is None:
        kept = _kernels.keep(identity, LaneKernel(model, target, eps, vector_bits))
    return kept


def model_identity(model: LaneModel) -> tuple[object, ...]:
    """What tells a model of the free parameters from others, for the kernels of a process."""
    matrix = hashlib.sha256(model.matrix.tobytes()).hexdigest()
    return (model.spec.row_key, matrix, model.matrix.shape, model.has_offset)
