"""Arguments with chunks, as the caller passed them, and the calls that rechunk them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

from nlsq_dask.io.cf import Decoding

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LazyArgument:
    """An argument that is read chunk by chunk, as the caller wrote it.

    Attributes
    ----------
    kind : {"dask", "zarr", "xarray", "file"}
        Library of the array; "file" is a variable of an HDF5 or netCDF file.
    dims : tuple of hashable or None
        For xarray, the name of each dimension of the rows, or None where the argument lacks the
        dimension. For other libraries only the length of the tuple counts.
    decoding : Decoding or None
        How the numbers of a Zarr or HDF5 array become values.
    """

    kind: Literal["dask", "zarr", "xarray", "file"]
    dims: tuple[Hashable | None, ...]
    decoding: Decoding | None = None

    def rechunked(self, name: str, chunks: Sizes) -> str:
        """The expression that rechunks an argument to so many rows along each dimension."""
        if self.kind == "xarray":
            return f"{name}.chunk({self._by_name(chunks)})"
        if self.decoding is not None:  # a Dask array has no attributes
            return self.stored_again(name, chunks)
        if self.kind == "zarr":
            return f"da.from_zarr({name}, chunks={self._by_position(chunks)})"
        if self.kind == "file":
            return f"da.from_array({name}, chunks={self._by_position(chunks)})"
        return f"{name}.rechunk({self._by_position(chunks)})"

    def stored_again(self, name: str, chunks: Sizes) -> str:
        """The call that stores an argument in such chunks, next to its own store if it has one."""
        store = "".join(c for c in name if c.isalnum()) + "_rechunked.zarr"
        if self.kind == "xarray":  # the encoding keeps the chunks of the old store
            return f"{self.rechunked(name, chunks)}.drop_encoding().to_zarr('{store}')"
        # Read whole chunks: Zarr decodes parts of chunks more than once.
        lazy = {"zarr": f"da.from_zarr({name})", "file": f"da.from_array({name})"}.get(
            self.kind, name
        )
        call = f"{lazy}.rechunk({self._by_position(chunks)}).to_zarr('{store}')"
        if self.decoding is None:
            return call
        if self.kind == "file":
            return f"{call}, then copy the attributes of {name}"
        return f"{call}, then zarr.open_array('{store}').attrs.update({name}.attrs)"

    def _by_name(self, chunks: Sizes) -> dict[Hashable, int]:
        named = zip(reversed(self.dims), reversed(chunks), strict=False)
        return {dim: n for dim, n in reversed(list(named)) if dim is not None}

    def _by_position(self, chunks: Sizes) -> Sizes:
        """Chunks of all dimensions: stacked coordinates have one more, broadcast arrays fewer."""
        more = len(self.dims) - len(chunks)
        return (-1,) * more + chunks if more >= 0 else chunks[-more:]
