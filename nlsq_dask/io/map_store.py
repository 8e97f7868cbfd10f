"""A Zarr group of maps, written region by region, from which a killed run goes on.

Each map is an array of the group, and its chunks are the regions. The status of a region is written
after its other maps: where it is not the fill value, the region is done. So the statuses are the
list of what is done, and nothing else has to be kept. Attributes of the group describe the problem
and hold a digest of the description: maps of another problem are never added to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from nlsq_dask import _errors
from nlsq_dask._errors import Status
from nlsq_dask.io import locations
from nlsq_dask.io.codec import checksum, dumps
from nlsq_dask.io.direct_write import direct_writer
from nlsq_dask.io.libraries import is_unsafe_zip, is_zarr_group
from nlsq_dask.io.places import check_there

FORMAT = "nlsq_dask maps 1"
ATTRIBUTE = "nlsq_dask"

#: Name of the field whose map is written last.
STATUS = "status"


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map to be stored.

    Attributes
    ----------
    name : str
    planes : ndarray of int, shape () or (p, p)
        Its planes in the packed answer.
    dtype : numpy.dtype
    fill : number
        Value of regions that are not written.
    dims : tuple of str
        Of the planes, if they have any, and of the map.
    attrs : dict
        In JSON values.
    """

    name: str
    planes: NDArray[np.int64]
    dtype: np.dtype[Any]
    fill: float
    dims: tuple[str, ...]
    attrs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredMap:
    """An array of the group, and its planes in the packed answer."""

    name: str
    array: zarr.Array[Any]
    planes: NDArray[np.int64]

    def write(self, region: tuple[slice, ...], packed: NDArray[Any]) -> None:
        """Write the map of a region, from the packed answer (k, ...) there."""
        planes = self.planes if self.planes.ndim else int(self.planes)  # of one plane a view
        check_there(self.array)
        values = packed[planes].astype(self.array.dtype, copy=False)
        box = (*(slice(None),) * self.planes.ndim, *region)
        writer = direct_writer(self.array)
        if writer is None or not writer.write(box, values):
            self.array[box] = values


@dataclass(frozen=True, slots=True)
class StoredPlanes:
    """Planes of stored maps as one array (q, ...), which reads the planes that are asked for.

    Attributes
    ----------
    planes : tuple of (zarr.Array, tuple of int)
        The array of each plane, and the indices of the plane along the first axes of the array.
    """

    planes: tuple[tuple[zarr.Array[Any], tuple[int, ...]], ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of all planes."""
        return np.dtype(self.planes[0][0].dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of planes, and shape of the map."""
        array, inside = self.planes[0]
        return (len(self.planes), *array.shape[len(inside) :])

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Lengths of a chunk: a region of a plane."""
        array, inside = self.planes[0]
        return (1, *array.chunks[len(inside) :])

    def __getitem__(self, index: tuple[int | slice, ...]) -> NDArray[Any]:
        """A part of the array, by an index for each axis."""
        first, *rest = index
        if isinstance(first, slice):
            return np.stack([self._read(plane, rest) for plane in self.planes[first]])
        return self._read(self.planes[first], rest)

    def _read(
        self, plane: tuple[zarr.Array[Any], tuple[int, ...]], index: Sequence[int | slice]
    ) -> NDArray[Any]:
        array, inside = plane
        return np.asarray(array[(*inside, *index)])


def open_group(store: Any, options: Mapping[str, Any] | None) -> zarr.Group:
    """Open the group of a path, a URL, or as it is.

    Raises
    ------
    InputError, InputTypeError
        If it cannot be opened for writing.
    """
    if is_zarr_group(store):
        if store.metadata.zarr_format != 3:
            raise _errors.map_store_of_format_2(str(store.store_path))
        if is_unsafe_zip(store.store):
            raise _errors.map_store_in_zip(str(store.store_path))
        return store  # type: ignore[no-any-return]
    if not isinstance(store, str | os.PathLike) or not os.fspath(store):
        raise _errors.map_store_not_a_place(store)
    text, secrets = os.fspath(store), dict(options or {})
    here = locations.local_path(text, "store")
    try:
        if here is not None:
            return zarr.open_group(here.absolute(), mode="a")
        given = locations.fsspec_options(text, secrets)
        return zarr.open_group(text, mode="a", storage_options=given)
    except locations.failures() as error:
        cause = locations.without_secrets(str(error), text, secrets)
        raise _errors.map_store_not_opened(locations.shown_url(text), cause) from None


def is_in_memory(group: zarr.Group) -> bool:
    """Whether a group is in the memory of this process."""
    return isinstance(group.store, MemoryStore)


def saved_problem(group: zarr.Group, *, resume: bool) -> Mapping[str, Any] | None:
    """The description of the fits whose maps a group holds; None if the group is empty.

    Raises
    ------
    InputError
        If the group has other content, or maps without `resume`.
    """
    saved = group.attrs.get(ATTRIBUTE)
    place = str(group.store_path)
    if saved is None:
        if any(True for _ in group.keys()):  # noqa: SIM118 (a group is no mapping)
            raise _errors.map_store_not_empty(place)
        return None
    if not resume:
        raise _errors.map_store_in_use(place)
    if not isinstance(saved, Mapping) or saved.get("format") != FORMAT:
        raise _errors.map_store_of_another_release(place)
    problem = saved.get("problem")
    return problem if isinstance(problem, Mapping) else {}


def check_problem(group: zarr.Group, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with the maps of a group if its fits have another description.

    Parameters
    ----------
    group : zarr.Group
    saved, now : mapping
        Descriptions of the fits of the group, and of those that are to go on, in JSON values.

    Raises
    ------
    InputError
    """
    content: Any = group.attrs[ATTRIBUTE]
    now, digest = _described(now)
    if content.get("sha256") == digest:
        return
    differing = [name for name in sorted({*saved, *now}) if saved.get(name) != now.get(name)]
    first = (differing or ["sha256"])[0]
    raise _errors.map_store_of_another_problem(
        str(group.store_path), differing or [first], saved.get(first), now.get(first)
    )


def write_problem(group: zarr.Group, problem: Mapping[str, Any]) -> None:
    """Write the description of the fits, in JSON values, to an empty group."""
    described, digest = _described(problem)
    group.attrs[ATTRIBUTE] = {"format": FORMAT, "sha256": digest, "problem": described}


def _described(problem: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """A description as a file gives it back, and its digest."""
    described: dict[str, Any] = json.loads(dumps(problem))
    return described, checksum(dumps(described))


def open_maps(
    group: zarr.Group,
    specs: Sequence[MapSpec],
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
) -> list[StoredMap]:
    """Make the arrays of the maps that a group lacks.

    Parameters
    ----------
    group : zarr.Group
    specs : sequence of MapSpec
        The last is the status.
    shape, chunks : tuple of int
        Of the map and of its regions.
    """
    return [StoredMap(spec.name, _array(group, spec, shape, chunks), spec.planes) for spec in specs]


def _array(
    group: zarr.Group, spec: MapSpec, shape: tuple[int, ...], chunks: tuple[int, ...]
) -> zarr.Array[Any]:
    if spec.name in group:
        found = group[spec.name]
        assert isinstance(found, zarr.Array)
        return found
    return group.create_array(
        spec.name,
        shape=(*spec.planes.shape, *shape),
        chunks=(*spec.planes.shape, *chunks),
        dtype=spec.dtype,
        fill_value=spec.fill,
        # A chunk of a process that was killed may be half written: its checksum tells.
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        dimension_names=spec.dims,
        attributes=dict(spec.attrs),
    )


def write_coordinates(
    group: zarr.Group, coords: Mapping[Hashable, Any], maps: Collection[str]
) -> None:
    """Write the coordinates of the map that a group lacks, as xarray writes and reads them.

    An earlier run may have made the array of a coordinate, and have ended before the values were
    written. Coordinates whose values are there are not written again.

    Numbers, texts and times are written. Other coordinates, such as the tuples of a multi-index,
    are left out. The attribute ``coordinates`` of the group names those that are not the index of
    a dimension.

    Parameters
    ----------
    group : zarr.Group
    coords : mapping of str to DataArray
    maps : collection of str
        Names of the maps, of which none is overwritten.
    """
    beside = []
    for name, values in coords.items():
        found = _stored_form(values, str(name))
        if found is None or str(name) in maps:
            continue
        stored, attrs = found
        if str(name) not in group:
            group.create_array(
                str(name),
                shape=stored.shape,
                dtype=str if stored.dtype.kind == "O" else stored.dtype,
                dimension_names=[str(dim) for dim in values.dims],
                attributes={key: value for key, value in attrs.items() if isinstance(value, str)},
            )
        array: Any = group[str(name)]
        if array.shape == stored.shape and not np.array_equal(array[...], stored):
            array[...] = stored
        if values.dims != (name,):
            beside.append(str(name))
    named = " ".join(sorted(beside))
    if beside and group.attrs.get("coordinates") != named:
        group.attrs["coordinates"] = named


def _stored_form(values: Any, name: str) -> tuple[NDArray[Any], Mapping[str, Any]] | None:
    """Numbers, or texts as objects, of a coordinate, and its attributes; None for other values."""
    kind = values.dtype.kind
    if kind in "mM":
        import xarray as xr  # an optional library, which made the coordinate

        encoded = xr.conventions.encode_cf_variable(values.variable, name=name)
        return np.asarray(encoded.values), encoded.attrs
    found = np.asarray(values)
    texts = kind in "UTO" and all(isinstance(value, str) for value in found.ravel().tolist())
    if texts:
        return found.astype(object), values.attrs
    return (found, values.attrs) if kind in "iufb" else None


def finished(
    status: zarr.Array[Any], starts: Sequence[Sequence[int]]
) -> dict[tuple[int, ...], NDArray[np.int64]]:
    """Regions that are done, by their indices, with how many series have each status.

    Parameters
    ----------
    status : zarr.Array
    starts : sequence of sequence of int
        Where the regions begin and end along each axis.
    """
    done: dict[tuple[int, ...], NDArray[np.int64]] = {}
    for index in np.ndindex(*(len(own) - 1 for own in starts)):
        region = tuple(slice(own[i], own[i + 1]) for own, i in zip(starts, index, strict=True))
        try:
            values = np.asarray(status[region])
        except (OSError, ValueError, RuntimeError):  # half written
            continue
        if not (values == Status.NOT_FITTED).any():
            done[index] = counts_of(values)
    return done


def counts_of(status: NDArray[Any]) -> NDArray[np.int64]:
    """How many series have each status, from -128 to 127."""
    found: NDArray[np.int64] = np.bincount(status.ravel().astype(np.int64) + 128, minlength=256)
    return found
