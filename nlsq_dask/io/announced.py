"""Blocks of Dask arrays compared with what the arrays say of them.

A Dask array announces the shape of each chunk and the dtype of all, and whatever makes a chunk may
hold to something else: ``y.map_blocks(lambda b: b[b > 0])``. The rows of the other arrays would
then be paired with the wrong ones, or broadcast to them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.io.chunks import Chunks

# Kinds of dtypes that hold real numbers, and that hold truth values.
NUMBERS = "fiub"
FLAGS = "b"


def check_block(
    block: Any, name: str, index: tuple[int, ...], shape: tuple[int, ...], kinds: str = NUMBERS
) -> None:
    """Compare a block with what was announced.

    Parameters
    ----------
    block : array_like
        As it was made.
    name : str
        What messages call the array that it is of.
    index : tuple of int
        Of the block among those of the array.
    shape : tuple of int
        As announced.
    kinds : str
        Kinds of dtypes that it may have.

    Raises
    ------
    InputError
        If the shape is another one.
    InputTypeError
        If the dtype is of another kind.
    """
    if np.shape(block) != shape:
        raise _errors.block_shape(name, index, np.shape(block), shape)
    dtype = np.ma.getdata(block, subok=False).dtype
    if dtype.kind not in kinds:
        raise _errors.block_dtype(name, index, dtype)


def checked(array: Any, name: str) -> Any:
    """A Dask array whose chunks are compared with what it announces when they are made.

    For an array that is cut into other chunks: the cuts would hide that a chunk is longer.

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
    from dask.layers import ArrayBlockIdDep, ArrayChunkShapeDep

    axes = tuple(range(array.ndim))
    kinds = FLAGS if array.dtype.kind in FLAGS else NUMBERS
    chunks: Chunks = array.chunks
    return da.blockwise(
        _checked_block,
        axes,
        array,
        axes,
        ArrayBlockIdDep(chunks),
        axes,
        ArrayChunkShapeDep(chunks),
        axes,
        name=f"nlsq-checked-{name}-{array.name}",
        array_name=name,
        kinds=kinds,
        dtype=array.dtype,
        meta=array._meta,  # noqa: SLF001  # says whether its blocks are masked arrays
        align_arrays=False,
    )


def _checked_block(
    block: Any, index: tuple[int, ...], shape: tuple[int, ...], array_name: str, kinds: str
) -> Any:
    """The block itself, if it is as announced."""
    check_block(block, array_name, tuple(index), tuple(shape), kinds)
    return block
