"""Comparison of the blocks of Dask arrays with their announced shapes and dtypes.

A Dask array announces the shape of each chunk and one dtype. The function that makes a chunk may
return another shape or dtype, as in ``y.map_blocks(lambda b: b[b > 0])``. Its rows would then be
paired with the wrong rows of the other arrays, or broadcast to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.io.chunks import Box, Chunks, lengths

# Kinds of dtypes of real numbers, and of truth values.
NUMBERS = "fiub"
FLAGS = "b"


@dataclass(frozen=True, slots=True)
class Announced:
    """Announced properties of a block.

    Attributes
    ----------
    name : str
        Name of the array in messages.
    index : tuple of int
        Index of the block in the array.
    box : tuple of slice
        Part of the array that the block holds.
    kinds : str
        Kinds of dtypes that the block may have.
    """

    name: str
    index: tuple[int, ...]
    box: Box
    kinds: str = NUMBERS

    def checked(self, block: Any) -> Any:
        """Return the block if it is as announced; see :meth:`check`."""
        self.check(block)
        return block

    def check(self, block: Any) -> None:
        """Compare a computed block with its announcement.

        Raises
        ------
        InputError
            If the shape differs.
        InputTypeError
            If the kind of dtype differs.
        """
        shape = lengths(self.box)
        if np.shape(block) != shape:
            slices = ", ".join(f"{s.start}:{s.stop}" for s in self.box)
            raise _errors.block_shape(self.name, self.index, slices, np.shape(block), shape)
        dtype = np.ma.getdata(block, subok=False).dtype
        if dtype.kind not in self.kinds:
            raise _errors.block_dtype(self.name, self.index, dtype)


def kinds_of(array: Any) -> str:
    """Kinds of dtypes that the blocks of an array may have."""
    return FLAGS if array.dtype.kind in FLAGS else NUMBERS


def checked(array: Any, name: str) -> Any:
    """A Dask array that compares each chunk with its announcement when the chunk is computed.

    Parameters
    ----------
    array : dask.array.Array
    name : str
        Name of the array in messages.

    Returns
    -------
    dask.array.Array
        Array with the same chunks.
    """
    import dask.array as da
    from dask.layers import ArrayBlockIdDep, ArraySliceDep

    axes = tuple(range(array.ndim))
    chunks: Chunks = array.chunks
    return da.blockwise(
        _checked_block,
        axes,
        array,
        axes,
        ArrayBlockIdDep(chunks),
        axes,
        ArraySliceDep(chunks),
        axes,
        name=f"nlsq-checked-{name}-{array.name}",
        array_name=name,
        kinds=kinds_of(array),
        dtype=array.dtype,
        meta=array._meta,  # tells whether blocks are masked arrays
        align_arrays=False,
    )


def _checked_block(
    block: Any, index: tuple[int, ...], box: Box, array_name: str, kinds: str
) -> Any:
    """Return the block if it is as announced."""
    return Announced(array_name, tuple(index), tuple(box), kinds).checked(block)
