"""Values of a model for many series at once, one series a lane."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.kernels.compiled import MAX_KERNELS, CompiledKernel
from nlsq_dask.kernels.devices import DeviceChoice, find_devices
from nlsq_dask.kernels.lane_sums import LaneModel, LaneRows
from nlsq_dask.user_model.lru import LruTable
from nlsq_dask.user_model.model_spec import ModelSpec


class LaneValues(CompiledKernel):
    """Values of one model.

    Parameters
    ----------
    spec : ModelSpec
    row_wise : bool
    devices : tuple of jax.Device
    """

    def __init__(self, spec: ModelSpec, row_wise: bool, devices: tuple[jax.Device, ...]) -> None:
        super().__init__(spec, None, devices, not row_wise)
        self._values = self._jitted(self._of_lanes)

    def __call__(self, coords: Sequence[FloatArray], params: FloatArray) -> FloatArray:
        """Values (m, L) at coordinates (m,) or (m, L) and parameters (p, L)."""
        layout = tuple(c.shape for c in coords)
        return self._run(self._values, (params,), tuple(coords), layout)

    def _of_lanes(self, params: jax.Array, coords: tuple[jax.Array, ...]) -> jax.Array:
        self._count_compilation()
        p, n_rows = params.shape[0], coords[0].shape[0]
        model = LaneModel(self._spec, np.eye(p), (False,) * p, not self._is_whole, n_rows)
        zero = jnp.zeros(params.shape[1])
        y = jnp.zeros((n_rows, params.shape[1]))
        rows = LaneRows(y, coords, None, zero, (zero,) * p)
        return model.values(rows, tuple(params))


_kernels: LruTable[tuple[object, ...], LaneValues] = LruTable(MAX_KERNELS)


def lane_values(
    spec: ModelSpec,
    row_wise: bool,
    device: DeviceChoice,
    coords: Sequence[FloatArray],
    params: FloatArray,
) -> FloatArray:
    """Values (m, L) of a model.

    Parameters
    ----------
    spec : ModelSpec
    row_wise : bool
    device : str, tuple of str or None
    coords : sequence of ndarray, each (m,) or (m, L)
    params : ndarray, shape (p, L), float64
    """
    target = find_devices(device)
    identity = (spec.row_key, row_wise, target)
    kept = _kernels.get(identity)
    if kept is None:
        kept = _kernels.keep(identity, LaneValues(spec, row_wise, target))
    return kept(coords, params)
