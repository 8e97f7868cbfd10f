"""Errors of memory and of chunks that do not fit into it; advice on chunks that slow a fit down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nlsq_dask._errors.kinds import InputError, in_units


def safety_factor_invalid(value: object) -> InputError:
    return InputError(
        f"safety_factor = {value!r}: pass a number above 0 and at most 1, the share of the "
        "available memory that a fit may use."
    )


def memory_invalid(name: str, value: object) -> InputError:
    return InputError(
        f"{name} = {value!r}: pass a positive finite number of gigabytes (1e9 bytes), or leave it "
        "out to use the memory that is available."
    )


def gpu_memory_unknown() -> InputError:
    return InputError(
        "use_gpu = True, but no GPU's memory is known: import jax first, in an installation that "
        "supports the GPU, or pass gpu_memory_gb or memory_limit_gb, or use_gpu=False."
    )


def data_exceed_memory(
    argument: str, value: str, data_gb: float, threshold_gb: float
) -> InputError:
    """The rows cannot be kept in memory, which was asked for."""
    return InputError(
        f"{argument} = {value!r} keeps a copy of all rows in memory, {data_gb:.3g} GB, but a fit "
        f"may use {threshold_gb:.3g} GB: use workflow='auto' or 'streaming', or "
        "raise memory_limit_gb if there is more memory."
    )


def _threads(n: int) -> str:
    return "1 thread" if n == 1 else f"{n} threads"


def chunk_too_large(
    chunks: tuple[int, ...],
    *,
    chunk_bytes: int,
    memory_bytes: int,
    threads: int,
    fitting_bytes: int,
    fitting_chunks: tuple[int, ...],
    joined: Sequence[int] = (),
) -> InputError:
    block = f"a chunk of shape {chunks}"
    if joined:
        block = (
            f"a block of whole series, of shape {chunks}, with all chunks along {tuple(joined)},"
        )
    return InputError(
        f"{block} takes {in_units(chunk_bytes)} when decoded, coordinates and sigma included, but "
        f"a worker with {in_units(memory_bytes)} of memory and {_threads(threads)} has room for "
        f"chunks of {in_units(fitting_bytes)}: rechunk all arrays alike, for example "
        f"y.rechunk({fitting_chunks}), or da.from_zarr(store, chunks={fitting_chunks}) for data in "
        "a store, or start workers with more memory or fewer threads."
    )


def memory_too_small(memory_bytes: int, threads: int, least_bytes: float) -> InputError:
    enough = 1.05 * least_bytes / 1e9  # two digits may round down by so much
    return InputError(
        f"{in_units(memory_bytes)} of memory for {_threads(threads)} leaves no room for chunks "
        f"beside the buffers of the threads: raise memory_limit_gb to {enough:.2g} or more, or "
        "start workers with more memory or fewer threads."
    )


def chunks_held(held_bytes: int, memory_bytes: int, room_bytes: int) -> InputError:
    """Chunks that differ too much would have to be kept in memory."""
    return InputError(
        f"the chunks of the arrays differ so much that {in_units(held_bytes)} of them would be "
        f"kept in memory, since many tasks need each; but a worker with {in_units(memory_bytes)} "
        f"of memory has room for {in_units(room_bytes)} of them. Store the data again with chunks "
        "alike, for example x.rechunk(y.chunks).to_zarr('x_rechunked.zarr'); or, where an array "
        "lacks a dimension of y, with longer chunks of y along that."
    )


def memory_exceeded(planned: float, available: float, fixed: float) -> str:
    return (
        f"the fit may take {in_units(planned)}, of which {in_units(fixed)} are for the program "
        f"itself whatever the data are, but {in_units(available)} are to be used: raise "
        "memory_limit_gb, on a cluster the memory of the workers, or expect more to be taken."
    )


# Advice of a plan: chunks that make a fit slower than it need be, and the call that helps.


def chunks_small(blocks: int, block_bytes: float, calls: str) -> str:
    return (
        f"{blocks:,} blocks of {in_units(block_bytes)} on average: opening and planning them costs "
        f"more than reading them. Pass joined chunks: {calls}; or store the data again in such "
        "chunks."
    )


def chunks_differ(
    grids: Mapping[str, tuple[int, ...]], repeated: float, shared: float, calls: str, stored: bool
) -> str:
    cuts = ", ".join(f"{name} {chunks}" for name, chunks in grids.items())
    costs = []
    if repeated:
        costs.append(f"{in_units(repeated)} are read twice in every pass, where tasks meet")
    if shared:
        costs.append(f"{in_units(shared)} are kept in memory, since many tasks need them")
    what = ", and ".join(costs) or "blocks are cut wherever either of them is"
    how = "Store the data again, cut alike" if stored else "Pass all cut alike"
    return f"the chunks do not match ({cuts}): {what}. {how}: {calls}."


def zarr_chunks_cut(
    name: str,
    chunks: tuple[int, ...],
    stored: tuple[int, ...],
    repeats: float,
    wanted: tuple[int, ...],
) -> str:
    """Dask reads pieces of Zarr chunks, each of which decodes the whole chunk."""
    return (
        f"{name} is read in Dask chunks of {chunks}, which cut the Zarr chunks of {stored} they "
        f"come from: each Zarr chunk is decoded {repeats:.3g} times in every pass. Pass whole "
        f"ones as {name}: da.from_zarr(store, chunks={wanted}), or the zarr.Array itself."
    )


def workers_idle(tasks: int, threads: int, calls: str, stored: bool) -> str:
    each = "1 task" if tasks == 1 else f"{tasks} tasks"
    how = "Store the data again in smaller chunks" if stored else "Pass the data cut smaller"
    return (
        f"a pass has {each} for {threads} threads, {threads - tasks} of which idle. {how}: {calls}."
    )
