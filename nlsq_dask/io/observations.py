"""The data of a fit, checked and in one representation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask.core.structure import Structure, argument_name, coordinate_names
from nlsq_dask.io.arguments import LazyArgument
from nlsq_dask.io.cf import Decoding
from nlsq_dask.io.chunks import Box, block_boxes, broadcast_box, regular_chunks
from nlsq_dask.io.frame import Frame, Label
from nlsq_dask.io.missing import NO_RULE, MissingRule
from nlsq_dask.io.stage import Block, Layout
from nlsq_dask.io.times import TimeAxis

# A NumPy array or a dask.array.Array: both have shape, ndim, dtype, size and basic indexing.
Array = Any

# Rows in memory that are examined at one time: each array of flags takes 1 MiB.
PIECE_ROWS = 1 << 20


@dataclass(frozen=True, slots=True)
class Observations:
    """The data of a fit, checked and in one representation.

    Attributes
    ----------
    y : numpy or dask array, shape (...), real dtype
        Observations, of at least one dimension.
    coords : tuple of array
        Coordinates, each with as many dimensions as ``y``. Lengths equal those of ``y``, or 1.
    sigma : array or None
        Standard deviations, shaped like a coordinate.
    structure : {"single", "stacked", "tuple"}
        How the model takes its coordinates: one array, one (k, n) array, or a tuple.
    lazy : bool
        Whether any of the arrays is a Dask array.
    masks : tuple of array of bool
        True where a row is left out, each shaped like a coordinate: the mask of the user, and the
        masks of masked arrays in memory. Blocks of Dask arrays may be masked arrays, too.
    rule : MissingRule
        Which values leave a row out.
    arguments : mapping of str to LazyArgument
        The arguments of the caller that have chunks, by their names in messages.
    propagates : bool
        Whether NaN that no rule leaves out is passed to the model.
    decode : "cf" or False
        Whether Zarr arrays have the values that their attributes declare.
    storage_options : mapping or None
        Options of the object store of arrays that are passed as URLs.
    frame : Frame or None
        Dimensions, coordinates and attributes of ``y``, if ``y`` is an array of xarray.
    labels : mapping of str to Label
        Names and units of the arguments that have them, by "y", "x" or "x[i]".
    times : tuple of (TimeAxis or None)
        For each coordinate how its times became numbers, if it had times.
    omitted : frozenset of tuple of int
        Blocks of Dask arrays that are left out, by their index in the chunk grid.
    series_axes : tuple of int
        Axes of ``y`` along which each block holds whole series; empty where rows are independent.
    """

    y: Array
    coords: tuple[Array, ...]
    sigma: Array | None
    structure: Structure
    lazy: bool
    masks: tuple[Array, ...] = ()
    rule: MissingRule = NO_RULE
    arguments: Mapping[str, LazyArgument] = field(default_factory=dict)
    propagates: bool = False
    decode: Literal["cf", False] = "cf"
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)  # credentials
    frame: Frame | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)
    times: tuple[TimeAxis | None, ...] = ()
    omitted: frozenset[tuple[int, ...]] = frozenset()
    series_axes: tuple[int, ...] = ()

    @property
    def n_rows(self) -> int:
        """Number of rows, including rows that are left out."""
        return int(self.y.size)

    @property
    def values(self) -> tuple[Array, ...]:
        """Arrays of numbers: ``y``, the coordinates, and ``sigma`` if there is one."""
        return (self.y, *self.coords) + (() if self.sigma is None else (self.sigma,))

    @property
    def operands(self) -> tuple[Array, ...]:
        """All arrays that a pass reads: the values, then the masks."""
        return self.values + self.masks

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values in messages."""
        coords = coordinate_names(self.structure, len(self.coords))
        return ("y", *coords) + (() if self.sigma is None else ("sigma",))

    @property
    def layout(self) -> Layout:
        """How a block is composed of pieces of the operands."""
        names = self.names + ("mask",) * len(self.masks)
        full = self.y.shape
        varies = tuple(
            tuple(n == rows for n, rows in zip(a.shape, full, strict=True)) for a in self.operands
        )
        n_masks = len(self.masks)
        return Layout(self.sigma is not None, n_masks, self.rule, names, varies, self.series_axes)

    @property
    def series_rows(self) -> int:
        """Rows of a series, rows that are left out included; 1 where rows are independent."""
        return math.prod(self.y.shape[d] for d in self.series_axes)

    @property
    def units(self) -> dict[str, str]:
        """Units of the arguments that have one, by "y", "x" or "x[i]"."""
        return {name: label.unit for name, label in self.labels.items() if label.unit}

    @property
    def selects(self) -> bool:
        """Whether rows may be left out."""
        if self.masks or self.rule.active or not self.lazy:
            return bool(self.masks) or self.rule.active
        metas = (getattr(a, "_meta", None) for a in self.values)
        return any(isinstance(meta, np.ma.MaskedArray) for meta in metas)

    @property
    def causes(self) -> list[str]:
        """What may leave rows out, in the words of messages."""
        causes = ["nan_policy='omit'"] if self.rule.omit_nan else []
        if self.rule.fill_value is not None:
            causes.append(f"fill_value={self.rule.fill_value}")
        if self.masks or not causes:
            causes.insert(0, "the masks")
        return causes

    @property
    def decodings(self) -> dict[str, Decoding]:
        """How stored numbers become values, by the names of the arguments."""
        found = self.arguments.items()
        return {name: a.decoding for name, a in found if a.decoding is not None}

    @property
    def decoded(self) -> tuple[str, ...]:
        """What becomes of stored numbers, a line for each argument that is decoded."""
        return tuple(f"{name}: {decoding}" for name, decoding in self.decodings.items())

    @property
    def marks(self) -> list[str]:
        """For each of `values`, the attributes that make NaN of some stored numbers."""
        arguments = (argument_name(self.structure, name) for name in self.names)
        found = (self.decodings.get(argument) for argument in arguments)
        return ["" if decoding is None else decoding.nan_text for decoding in found]

    @property
    def flat(self) -> bool:
        """Whether all coordinates have the shape of ``y``, so that keeping rows takes no more."""
        return all(c.shape == self.y.shape for c in self.coords)

    def block(self, box: Box) -> Block:
        """Views of the rows of a box. For data in memory only."""
        return self.layout.block([a[broadcast_box(box, a.shape)] for a in self.operands])

    def pieces(self) -> Iterator[tuple[Box, Block]]:
        """Boxes that cover all rows in order, and views of their rows. For data in memory only."""
        for _, box in block_boxes(regular_chunks(self.y.shape, PIECE_ROWS, self.series_axes)):
            yield box, self.block(box)

    def thinned(self, most: int) -> Observations:
        """Every k-th row that is not left out, as flat float64 arrays. For data in memory only.

        Parameters
        ----------
        most : int
            Most rows to keep.

        Raises
        ------
        InputError
            If all rows are left out.
        """
        step = -(-self.n_rows // most)
        kept: list[list[NDArray[np.float64]]] = []
        seen = 0
        for _, block in self.pieces():
            places = slice(-seen % step, None, step)
            seen += block.y.size
            kept.append(_rows_of(block, places))
        y, *others = (np.concatenate(column) for column in zip(*kept, strict=True))
        if not y.size and self.n_rows > most:
            return self.thinned(self.n_rows)
        if not y.size:
            raise _errors.all_left_out(self.n_rows, self.causes)
        sigma = None if self.sigma is None else others.pop()
        return self.sample_of(y, tuple(others), sigma)

    def sample_of(
        self,
        y: NDArray[np.float64],
        coords: tuple[NDArray[np.float64], ...],
        sigma: NDArray[np.float64] | None,
    ) -> Observations:
        """Some rows that are not left out, as flat arrays (n,) in memory."""
        return Observations(
            y, coords, sigma, self.structure, lazy=False, propagates=self.propagates
        )

    def count_rows(self) -> int:
        """Number of rows that are not left out. For data in memory only."""
        if not self.selects:
            return self.n_rows
        return self.n_rows - sum(
            int(np.count_nonzero(block.left_out())) for _, block in self.pieces()
        )


def _rows_of(block: Block, places: slice) -> list[NDArray[np.float64]]:
    """The rows of a block at some places that are not left out: each array flat, as float64."""
    shape = block.y.shape
    if not block.selects and _is_flat(block):
        # A slice takes a third of the time of indices.
        return [np.asarray(a.reshape(-1)[places], np.float64) for a in block.arrays]
    rows = np.arange(*places.indices(block.y.size))
    if block.selects:
        rows = rows[~block.left_out().ravel()[rows]]
    index = np.unravel_index(rows, shape)
    return [np.asarray(np.broadcast_to(a, shape)[index], np.float64) for a in block.arrays]


def _is_flat(block: Block) -> bool:
    """Whether all arrays of a block are contiguous and have the shape of y."""
    return all(a.shape == block.y.shape and a.flags.c_contiguous for a in block.arrays)
