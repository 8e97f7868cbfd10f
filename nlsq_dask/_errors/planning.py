"""Advice of a plan: chunks that make a fit slower than it need be, and the call that helps."""

from __future__ import annotations

from collections.abc import Mapping

from nlsq_dask._errors.kinds import in_units


def chunks_small(blocks: int, block_bytes: float, calls: str) -> str:
    """There are very many very small chunks."""
    return (
        f"{blocks:,} blocks of {in_units(block_bytes)} on average: opening and planning them costs "
        f"more than reading them. Pass joined chunks: {calls}; or store the data again in such "
        "chunks."
    )


def chunks_differ(
    grids: Mapping[str, tuple[int, ...]], repeated: float, held: float, calls: str, stored: bool
) -> str:
    """Arrays are cut at different places."""
    cuts = ", ".join(f"{name} {chunks}" for name, chunks in grids.items())
    costs = []
    if repeated:
        costs.append(f"{in_units(repeated)} are read twice in every pass, where tasks meet")
    if held:
        costs.append(f"{in_units(held)} are kept in memory, since many tasks need them")
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
    """There are fewer tasks than threads."""
    each = "1 task" if tasks == 1 else f"{tasks} tasks"
    how = "Store the data again in smaller chunks" if stored else "Pass the data cut smaller"
    return (
        f"a pass has {each} for {threads} threads, {threads - tasks} of which idle. {how}: {calls}."
    )


def memory_exceeded(planned: float, available: float, fixed: float) -> str:
    """A memory limit is below what is planned for."""
    return (
        f"the fit may take {in_units(planned)}, of which {in_units(fixed)} are for the program "
        f"itself whatever the data are, but {in_units(available)} are to be used: raise "
        "memory_limit_gb, on a cluster the memory of the workers, or expect more to be taken."
    )


def no_workers() -> str:
    """A cluster has no worker yet."""
    return (
        "no worker has joined the cluster yet, so that nothing is known of its memory and speed: "
        "plan again after client.wait_for_workers(1)."
    )
