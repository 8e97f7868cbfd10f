"""Blocks of Dask arrays compared with what the arrays say of them.

A Dask array announces the shape of each chunk and the dtype of all, and whatever makes a chunk may
hold to something else: ``y.map_blocks(lambda b: b[b > 0])``. The rows of the other arrays would
then be paired with the wrong ones, or broadcast to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.io.chunks import Box, Chunks, lengths

# Kinds of dtypes that hold real numbers, and that hold truth values.
NUMBERS = "fiub"
FLAGS = "b"


@dataclass(frozen=True, slots=True)
class Announced:
    """What is announced of a block.

    Attributes
    ----------
    name : str
        What messages call the array that it is of.
    index : tuple of int
        Of the block among those of the array.
    box : tuple of slice
        What it is of the array.
    kinds : str
        Kinds of dtypes that it may have.
    """

    name: str
    index: tuple[int, ...]
    box: Box
    kinds: str = NUMBERS

    def checked(self, block: Any) -> Any:
        """The block itself, if it is as announced; see :meth:`check`."""
        self.check(block)
        return block

    def check(self, block: Any) -> None:
        """Compare a block, as it was made, with what was announced.

        Raises
        ------
        InputError
            If the shape is another one.
        InputTypeError
            If the dtype is of another kind.
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
    """A Dask array whose chunks are compared with what it announces when they are made.

    Parameters
    ----------
    array : dask.array.Array
    name : str
        What messages call it.

    Returns
    -------
    dask.array.Array
        With the same chunks.
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
        meta=array._meta,  # says whether its blocks are masked arrays
        align_arrays=False,
    )


def _checked_block(
    block: Any, index: tuple[int, ...], box: Box, array_name: str, kinds: str
) -> Any:
    """The block itself, if it is as announced."""
    return Announced(array_name, tuple(index), tuple(box), kinds).checked(block)
