"""A table of the blocks of a fit: which of them fit badly, and which move the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.results.tables import aligned, html_table

if TYPE_CHECKING:
    import xarray as xr

# Blocks that are printed: those that move the answer most.
PRINTED = 10


# Compared by identity: comparing arrays gives no single truth value.
@dataclass(frozen=True, eq=False)
class BlockDiagnostics:
    """Each block of a fit, at the last point that was evaluated.

    A block is a chunk, or a group of neighbouring chunks. Prints as a table of the blocks that move
    the answer most. With n blocks of data of d dimensions and p parameters:

    Attributes
    ----------
    names : tuple of str, length p
        The parameters.
    starts, stops : ndarray, shape (n, d), int64
        The rows of ``y`` in each block, as slices; of a group, the smallest box around its chunks.
    n_chunks : ndarray, shape (n,), int64
        Chunks of the block.
    n_points, n_skipped : ndarray, shape (n,), int64
        Rows in the sums, and rows left out.
    chi2_per_row : ndarray, shape (n,), float64
        Sum of squared weighted residuals over `n_points`. NaN for a block without rows.
    mean_abs_residual : ndarray, shape (n,), float64
        Mean of ``|y - f|``, in the units of y.
    shift : ndarray, shape (n, p), float64
        How far each estimate moves if the block is left out, in standard errors, by one step of
        Gauss-Newton. NaN where the other blocks do not determine the parameters.
    """

    names: tuple[str, ...]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    n_chunks: NDArray[np.int64]
    n_points: NDArray[np.int64]
    n_skipped: NDArray[np.int64]
    chi2_per_row: FloatArray
    mean_abs_residual: FloatArray
    shift: FloatArray

    def __len__(self) -> int:
        return len(self.n_points)

    @property
    def order(self) -> NDArray[np.int64]:
        """Numbers of the blocks, the one that moves an estimate most first."""
        largest = np.max(np.nan_to_num(np.abs(self.shift), nan=np.inf), axis=1, initial=0.0)
        return np.argsort(-largest, kind="stable").astype(np.int64)

    def rows(self, number: int) -> str:
        """The rows of a block as they are selected from ``y``, as ``"[0:100, 0:64]"``."""
        pairs = zip(self.starts[number].tolist(), self.stops[number].tolist(), strict=True)
        return f"[{', '.join(f'{start}:{stop}' for start, stop in pairs)}]"

    def to_dataset(self) -> xr.Dataset:
        """The table for xarray, along the dimensions "block", "axis" and "param".

        Raises
        ------
        MissingLibraryError
            If xarray is not installed.
        """
        try:
            import xarray as xr
        except ImportError as error:
            raise _errors.dataset_needs_xarray() from error
        variables: dict[str, Any] = {
            "start": (("block", "axis"), self.starts),
            "stop": (("block", "axis"), self.stops),
            "shift": (("block", "param"), self.shift),
        }
        columns = ("n_chunks", "n_points", "n_skipped", "chi2_per_row", "mean_abs_residual")
        variables |= {name: ("block", getattr(self, name)) for name in columns}
        return xr.Dataset(variables, {"param": np.array(self.names, dtype=object)})

    def __str__(self) -> str:
        return "\n".join((self._caption, *aligned([self._head, *self._lines()])))

    def _repr_html_(self) -> str:
        return html_table(self._lines(), self._head, caption=self._caption)

    @property
    def _caption(self) -> str:
        shown = f", the {PRINTED} that move the answer most" if len(self) > PRINTED else ""
        return f"{len(self):,} blocks{shown}; shifts in standard errors"

    @property
    def _head(self) -> list[str]:
        shifts = (f"shift of {name}" for name in self.names)
        return ["y", "rows", "left out", "chi2/row", "mean |y - f|", *shifts]

    def _lines(self) -> list[Sequence[str]]:
        return [
            [
                self.rows(i),
                f"{self.n_points[i]:,}",
                f"{self.n_skipped[i]:,}",
                f"{self.chi2_per_row[i]:.4g}",
                f"{self.mean_abs_residual[i]:.4g}",
                *(f"{value:+.2f}" for value in self.shift[i]),
            ]
            for i in self.order[:PRINTED].tolist()
        ]
