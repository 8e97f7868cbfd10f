"""Compiled functions of one model, kept for the process.

JAX compiles a function again for each shape of its arguments. A kernel counts these compilations,
lets one thread compile while the others wait, and returns NumPy arrays.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.resources import (
    VECTOR_OPTION,
    WIDE_VECTOR_BITS,
    XLA_VECTOR_BITS,
    return_freed_memory,
)
from nlsq_dask.kernels.devices import DeviceChoice, find_devices, next_device
from nlsq_dask.kernels.tiles import CPU_TILE_BYTES, Rows
from nlsq_dask.user_model.lru import LruTable
from nlsq_dask.user_model.model import check_trace
from nlsq_dask.user_model.model_spec import ModelSpec, operations_of

# Operations that XLA computes with an arctangent.
ARCTANGENTS = frozenset(["acos", "asin", "atan", "atan2"])

# Option of XLA with two values before jaxlib 0.11.1. Without its newer emitters XLA compiles a loop
# with a matrix product in 0.6 of the time, to the same bits and speed. Sums by lanes take 1.4 to
# 1.6 times as long. jaxlib 0.11.1 and later have no such option.
EMITTERS_OPTION = "xla_cpu_use_fusion_emitters"
HAS_EMITTERS_OPTION = jax.__version_info__ < (0, 11, 1)

# Kernels kept in one process. Each holds its compiled code, some hundred kilobytes.
MAX_KERNELS = 64

KernelT = TypeVar("KernelT", bound="CompiledKernel")


class CompiledKernel:
    """Functions of the rows of one model.

    Parameters
    ----------
    spec : ModelSpec
        The model.
    tile_bytes : int or None
        Bytes of the values of a tile. None evaluates a buffer in one call of the model, for models
        whose rows depend on each other.
    devices : tuple of jax.Device
        Where the kernel runs: the devices take buffers in turn.
    whole : bool
        Whether a buffer holds all rows, for a model that needs all rows at once.
    vector_bits : int
        Bits of the vectors of a CPU that the code prefers. Another width may round otherwise.

    Attributes
    ----------
    is_large : bool
        Whether compiling takes so much memory that the freed memory is returned to the system.
    """

    is_large: ClassVar[bool] = False

    def __init__(
        self,
        spec: ModelSpec,
        tile_bytes: int | None,
        devices: tuple[jax.Device, ...],
        whole: bool,
        vector_bits: int = XLA_VECTOR_BITS,
    ) -> None:
        self._spec = spec
        self._tile_bytes = tile_bytes
        self._devices = devices
        self._is_whole = whole
        self._options: dict[str, bool | str] = {}
        wide = devices[0].platform == "cpu" and vector_bits != XLA_VECTOR_BITS
        self._is_wide = wide and not _takes_arctangents(spec)
        if self._is_wide:
            self._options = {VECTOR_OPTION: str(vector_bits)}
        self._compiled: set[tuple[object, ...]] = set()
        self._compiling = threading.Lock()

    def _jitted(
        self, function: Callable[..., jax.Array], multiplies: bool = False
    ) -> Callable[..., jax.Array]:
        """A function of ``(*at, rows)`` that JAX compiles with the options of the kernel.

        Parameters
        ----------
        function : callable
        multiplies : bool
            Whether it sums tiles by a matrix product: then it is compiled in less time.
        """
        options = dict(self._options)
        if multiplies and HAS_EMITTERS_OPTION and self._devices[0].platform == "cpu":
            options[EMITTERS_OPTION] = False
        return jax.jit(function, compiler_options=options)

    def _run(
        self,
        function: Callable[..., jax.Array],
        at: tuple[FloatArray | np.bool_, ...],
        rows: Any,
        layout: object,
    ) -> FloatArray:
        """Value of a jitted function.

        Parameters
        ----------
        function : callable
            ``function(*at, rows)``.
        at : tuple of ndarray
        rows : Rows or tuple of ndarray
            Buffers, which may be refilled afterwards.
        layout : hashable
            Sizes of the buffers. Each layout is a compilation.
        """
        device = self._device_for(rows)
        shapes = (function, *[a.shape for a in at], layout, device)
        if shapes not in self._compiled:
            with self._compiling:  # one thread compiles, the others wait for its code
                if shapes not in self._compiled:
                    return self._first(function, at, rows, device, shapes)
        return self._fetch(function, at, rows, device)

    def _first(
        self,
        function: Callable[..., jax.Array],
        at: tuple[FloatArray | np.bool_, ...],
        rows: Any,
        device: jax.Device,
        shapes: tuple[object, ...],
    ) -> FloatArray:
        """The value of a function that JAX compiles for these shapes."""
        check_trace(self._spec)
        result = self._fetch(function, at, rows, device)
        self._compiled.add(shapes)
        if self.is_large:
            return_freed_memory()
        return result

    def _fetch(
        self,
        function: Callable[..., jax.Array],
        at: tuple[FloatArray | np.bool_, ...],
        rows: Any,
        device: jax.Device,
    ) -> FloatArray:
        with jax.enable_x64(True), jax.default_device(device):
            # Fetching waits for the kernel. After that the buffers may be refilled.
            return np.asarray(function(*at, rows))

    def _device_for(self, rows: Any) -> jax.Device:
        """The device that has the rows, or the next in turn for rows in NumPy arrays."""
        if len(self._devices) == 1:
            return self._devices[0]
        if isinstance(rows, Rows) and isinstance(rows.y, jax.Array):
            return next(iter(rows.y.devices()))
        return next_device(self._devices)

    def _count_compilation(self) -> None:
        """Count a compilation; to be called in traced code, which runs once a compilation."""
        _compilations[type(self), self._spec.token] += 1


_compilations: Counter[tuple[type[CompiledKernel], str]] = Counter()
_kernels: LruTable[tuple[object, ...], CompiledKernel] = LruTable(MAX_KERNELS)


def kept_kernel(
    kind: type[KernelT],
    key: str,
    spec: ModelSpec,
    device: DeviceChoice,
    whole: bool,
    vector_bits: int = XLA_VECTOR_BITS,
) -> KernelT:
    """Kernel of a model in this process, made at the first call.

    Parameters
    ----------
    kind : type
        Class of the kernel.
    key : str
        Identity of the functions that the kernel computes.
    spec : ModelSpec
        The model.
    device : str, tuple of str or None
        Choice of devices; None takes JAX's default.
    whole : bool
        Evaluate each buffer in one call of the model, without tiles.
    vector_bits : int
        Bits of the vectors of a CPU that the code prefers.

    Raises
    ------
    InputError
        If JAX has no such device.
    """
    target = find_devices(device)
    tile_bytes = None if whole or target[0].platform != "cpu" else CPU_TILE_BYTES
    identity = (kind, key, tile_bytes, target, whole, vector_bits)
    kept = _kernels.get(identity)
    if kept is None:
        kept = _kernels.keep(identity, kind(spec, tile_bytes, target, whole, vector_bits))
    return cast("KernelT", kept)


def _takes_arctangents(spec: ModelSpec) -> bool:
    """Whether a model, its Jacobian or its loss may take an arctangent.

    In JAX 0.10 XLA compiles an arctangent of eight numbers to a function that does not expect
    vectors of 512 bits, and calls this function with such vectors: the values are wrong. Functions
    of complex numbers take arctangents for angles.
    """
    parts = (spec, spec.jacobian, spec.loss.function)
    models = (part for part in parts if isinstance(part, ModelSpec))
    return any(
        eqn.primitive.name in ARCTANGENTS
        or any(jnp.iscomplexobj(result.aval) for result in eqn.outvars)
        for eqn in operations_of(models)
    )


@cache
def compiles_for_wide_vectors() -> bool:
    """Whether this release of JAX knows the option of the width of vectors."""
    options: dict[str, bool | str] = {VECTOR_OPTION: str(WIDE_VECTOR_BITS)}
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def compilations(kind: type[CompiledKernel], spec: ModelSpec) -> int:
    """Number of compilations of a model's kernel of a kind in this process."""
    return _compilations[kind, spec.token]
