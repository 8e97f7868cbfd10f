"""The compiled kernels of the models of a fit."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

import jax

from nlsq_dask.core.resources import XLA_VECTOR_BITS
from nlsq_dask.kernels.devices import DeviceChoice, find_device, find_devices, next_device
from nlsq_dask.kernels.sums import BlockKernel, block_kernel
from nlsq_dask.kernels.tiles import Rows
from nlsq_dask.user_model.model_spec import ModelSpec


@dataclass(frozen=True)  # without slots, for the cached property
class Kernels:
    """Kernels by the model's number: a value that can be pickled.

    Attributes
    ----------
    specs : tuple of ModelSpec
        The models.
    device : str, tuple of str or None
        Where the kernels run; None takes JAX's default.
    whole : bool
        Whether a model needs all rows in one call.
    vector_bits : int
        Bits of the vectors of a CPU for which the kernels are compiled: the same wherever a fit
        runs, for the same bits of its sums.
    """

    specs: tuple[ModelSpec, ...]
    device: DeviceChoice = None
    whole: bool = False
    vector_bits: int = XLA_VECTOR_BITS

    def __getitem__(self, model: int) -> BlockKernel:
        return self._opened[model]

    @cached_property
    def _opened(self) -> tuple[BlockKernel, ...]:
        """The kernels of this process."""
        options = self.device, self.whole, self.vector_bits
        return tuple(block_kernel(spec, *options) for spec in self.specs)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def compare_anew(self) -> Self:
        """Compare each model with its kernel at the next rows, as every fit in memory does."""
        for kernel in self._opened:
            kernel.compare_anew()
        return self

    @property
    def on_cpu(self) -> bool:
        """Whether the kernels run on a CPU, where they read buffers without a copy."""
        platform: str = find_device(self.device).platform
        return platform == "cpu"

    def put(self, rows: Rows, device: jax.Device | None = None) -> Rows:
        """Place rows on a device, by default the next in turn, where they stay between passes.

        On a CPU the kernel reads the aligned buffers themselves. Do not write to them afterwards.
        """
        if self.on_cpu:
            return rows
        target = device or next_device(find_devices(self.device))
        with jax.enable_x64(True):
            buffers = (rows.coords, rows.y, rows.weights, rows.counted)
            coords, y, weights, counted = jax.device_put(buffers, target)
        return Rows(coords, y, weights, rows.n, counted)
