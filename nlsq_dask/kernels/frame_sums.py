"""Sums over the rows of many series, added up a few rows at a time.

The rows of a series may come in frames, a few rows of all series at a time, too many to be held.
The sums of a series at one point are then added up over the frames. They are those of
:mod:`nlsq_dask.kernels.lane_sums`: the lower triangle of [J r]ᵀ[J r], row after row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask.core.lane_step import LaneSums
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.resources import XLA_VECTOR_BITS
from nlsq_dask.kernels.compiled import MAX_KERNELS, CompiledKernel
from nlsq_dask.kernels.devices import DeviceChoice, find_devices
from nlsq_dask.kernels.lane_sums import LaneModel, LaneRows
from nlsq_dask.kernels.lanes import LaneData, model_identity
from nlsq_dask.user_model.lru import LruTable


class FrameKernel(CompiledKernel):
    """The program that adds rows to the sums of one row-wise model.

    Parameters
    ----------
    model : LaneModel
    devices : tuple of jax.Device
    vector_bits : int
        Bits of the vectors of a CPU that the code prefers. A lane has the same bits for any width.
    """

    def __init__(
        self, model: LaneModel, devices: tuple[jax.Device, ...], vector_bits: int = XLA_VECTOR_BITS
    ) -> None:
        super().__init__(model.spec, None, devices, False, vector_bits)
        self._model = model
        self._added = self._jitted(self._with_rows)

    def __call__(
        self, totals: FloatArray, params: FloatArray, data: LaneData, n_rows: int
    ) -> FloatArray:
        """Totals with the products of rows added.

        Parameters
        ----------
        totals : ndarray, shape (B, t, L)
        params : ndarray, shape (B, q, L)
            Point at which the sums are.
        data : LaneData
            Constants (B, p + 1, L) are the offsets of all parameters and the scale.
        n_rows : int
            Rows of the data that count.

        Returns
        -------
        ndarray, shape (B, t, L)
        """
        shapes = tuple(c.shape for c in data.coords)
        weights = None if data.weights is None else data.weights.shape
        layout = (totals.shape, data.y.shape, shapes, weights)
        count = np.array(n_rows, np.float64)
        return self._run(self._added, (totals, params, count), data, layout)

    def _with_rows(
        self, totals: jax.Array, params: jax.Array, n_rows: jax.Array, data: LaneData
    ) -> jax.Array:
        self._count_compilation()
        count = n_rows.astype(jnp.int64)
        by_tile = [jnp.ndim(c) == 3 for c in data.coords]
        weights_by_tile = data.weights is not None and jnp.ndim(data.weights) == 3

        def of_tile(arrays: tuple[jax.Array, ...]) -> jax.Array:
            before, free, y, constants, coords, weights = arrays
            own = iter(coords)
            shared = zip(by_tile, data.coords, strict=True)
            rows = LaneRows(
                y,
                tuple(next(own) if varies else jnp.asarray(c) for varies, c in shared),
                weights if weights_by_tile else data.weights,  # type: ignore[arg-type]
                constants[-1],
                tuple(constants[:-1]),
            )
            return jnp.stack(self._model.added(rows, tuple(free), count, tuple(before)))

        coords = tuple(c for c, varies in zip(data.coords, by_tile, strict=True) if varies)
        weights = data.weights if weights_by_tile else None
        found: jax.Array = jax.lax.map(
            of_tile, (totals, params, data.y, data.constants, coords, weights)
        )
        return found


def n_totals(size: int) -> int:
    """Number of sums of a series with q free parameters, t."""
    return (size + 1) * (size + 2) // 2


def sums_of(totals: FloatArray, size: int) -> LaneSums:
    """Totals (t, n) as sums; views."""
    n_products = size * (size + 1) // 2
    return LaneSums(totals[:n_products], totals[n_products:-1], totals[-1])  # type: ignore[arg-type]


_kernels: LruTable[tuple[object, ...], FrameKernel] = LruTable(MAX_KERNELS)


def frame_kernel(
    model: LaneModel, device: DeviceChoice, vector_bits: int = XLA_VECTOR_BITS
) -> FrameKernel:
    """The program of a model in this process, made at the first call."""
    target = find_devices(device)
    identity = (*model_identity(model), target, vector_bits)
    kept = _kernels.get(identity)
    if kept is None:
        kept = _kernels.keep(identity, FrameKernel(model, target, vector_bits))
    return kept
