"""The memory budget of a fit, the strategy that keeps it, and the size of the blocks.

For n rows of f features, p parameters and d bytes a number, a solver that holds everything needs

    data = n (f + 1) d        Jacobian = n p d
    peak = data + 1.3 Jacobian + 8 p² + 0.1 GB

where 1.3 stands for the Jacobian and the pieces of it that are made at one time. The three
strategies ask for less and less of it: *standard* keeps all rows ready for the kernel, *chunked*
prepares blocks of the arrays that the user holds, *streaming* reads blocks. Here, as everywhere, a
gigabyte (GB) is 1e9 bytes. Everything in this module is arithmetic on numbers, and decides before
anything runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from nlsq_dask import _errors
from nlsq_dask.core.checks import checked_count, checked_gigabytes, checked_safety_factor
from nlsq_dask.core.goals import GOAL_RULES, OptimizationGoal
from nlsq_dask.core.resources import available_cores, available_memory, gpu_memory

Strategy = Literal["standard", "chunked", "streaming"]

#: Bytes in a gigabyte.
GB = 1_000_000_000

#: Share of the available memory that a fit may use.
SAFETY_FACTOR = 0.75

#: Jacobians held at one time, the pieces included.
JACOBIAN_COPIES = 1.3

#: Memory of the solver, the compiler and the compiled code, in bytes.
SOLVER_BYTES = GB // 10

# Most rows of a block. Chunked: what the staging buffer holds, beyond which nothing gets faster.
# Streaming: 8 MB of float64, at which reading was fastest of 1, 8 and 64 MB. Smallest memory:
# about as much work as waking a thread costs.
MAX_ROWS = {"chunked": 1 << 18, "streaming": 1 << 20}
MAX_ROWS_SMALL = 1 << 15

# Rows whose work costs as much as calling the kernel. Blocks are this small at least, and fewer
# threads run, where a memory limit leaves the choice.
CALL_ROWS = 1 << 13

# Threads that blocks are sized for. A constant, so that where rows are cut (and with it the last
# bits of a sum) does not depend on the number of cores.
SIZING_THREADS = 16

# Memory of one thread beside its block: the matrix of one tile (64 KiB, packed twice by the matrix
# product) and the model's intermediate values on it.
THREAD_BYTES = 1 << 20

# Matrices of a block on a GPU, where a tile is a block: derivatives, their masked copy, and the
# intermediate values they are made from.
GPU_MATRICES = 3

# What a worker holds before it has read a chunk: the interpreter, Dask, Zarr and JAX, measured as
# 285 to 400 MB, the compiled model included.
WORKER_BASE_BYTES = 400_000_000

# Decoded chunks that a thread holds at the peak of reading one: the result, the decoder's output,
# and the encoded bytes. Measured with Zarr 3.1: 2.96 for noise with zstd, 2.0 without compression.
CHUNKS_A_THREAD = 3

# Most rows of the sample of streamed data on which several starts are tried: with 10 parameters a
# fit of them takes about a second. Fewest, below which a start cannot be judged.
SAMPLE_ROWS = 1_000_000
MIN_SAMPLE_ROWS = CALL_ROWS

# Copies of a sample at the peak of taking it: its parts, their sums (twice), and the rows made
# ready for the kernel.
SAMPLE_COPIES = 4


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """The memory that there is, and the memory that a fit would take, in GB (1e9 bytes).

    Attributes
    ----------
    available_gb : float
        What the process (or one worker) can take.
    threshold_gb : float
        What the fit may take of it: ``available_gb * safety_factor``.
    data_gb : float
        All rows, coordinates and observations.
    jacobian_gb : float
        The Jacobian of all rows.
    peak_gb : float
        Rows, Jacobian and solver together.
    """

    available_gb: float
    threshold_gb: float
    data_gb: float
    jacobian_gb: float
    peak_gb: float

    @property
    def fits_in_memory(self) -> bool:
        """Whether rows and Jacobian fit: ``peak_gb <= threshold_gb``."""
        return self.peak_gb <= self.threshold_gb

    @property
    def data_fits(self) -> bool:
        """Whether the rows fit: ``data_gb <= threshold_gb``."""
        return self.data_gb <= self.threshold_gb

    @classmethod
    def compute(
        cls,
        n_points: int,
        n_params: int,
        n_features: int = 1,
        dtype_bytes: int = 8,
        safety_factor: float = SAFETY_FACTOR,
        memory_limit_gb: float | None = None,
        use_gpu: bool = False,
        *,
        gpu_memory_gb: float | Callable[[], float] | None = None,
    ) -> MemoryBudget:
        """Compute the budget of a fit.

        Parameters
        ----------
        n_points, n_params, n_features : int
            Rows, parameters, and coordinates of a row.
        dtype_bytes : int
            Bytes of one number of the data and of the Jacobian.
        safety_factor : float
            Share of the available memory that may be used, in (0, 1].
        memory_limit_gb : float, optional
            Memory to reckon with in GB, whatever there is. By default what the machine and the
            cgroups around this process still have, or the GPU.
        use_gpu : bool
            Reckon with the GPU's memory.
        gpu_memory_gb : float or callable, optional
            The GPU's memory in GB, or what returns it; by default JAX is asked, if it is loaded.

        Raises
        ------
        InputError
            If a number is out of its range, or no GPU is known; the message names the argument.

        Examples
        --------
        >>> budget = MemoryBudget.compute(n_points=10_000_000, n_params=10, memory_limit_gb=16.0)
        >>> budget.data_gb, budget.jacobian_gb, round(budget.peak_gb, 2)
        (0.16, 0.8, 1.3)
        >>> budget.fits_in_memory
        True
        """
        rows, p = checked_count("n_points", n_points), checked_count("n_params", n_params)
        columns = checked_count("n_features", n_features) + 1
        item = checked_count("dtype_bytes", dtype_bytes)
        share = checked_safety_factor(safety_factor)
        available = _available_gb(memory_limit_gb, use_gpu, gpu_memory_gb)
        data, jacobian = rows * columns * item, rows * p * item
        # The solver works in float64, whatever the data are.
        peak = data + JACOBIAN_COPIES * jacobian + 8 * p * p + SOLVER_BYTES
        return cls(available, available * share, data / GB, jacobian / GB, peak / GB)


@dataclass(frozen=True, slots=True)
class BlockConfig:
    """The blocks of a chunked or streaming fit.

    Attributes
    ----------
    block_rows : int
        Most rows of one block, a power of two. Where Dask arrays have chunks of their own, rows
        of the buffer that a chunk passes through.
    threads : int
        Threads that work on blocks at one time.
    thread_bytes : int
        Memory of one thread with its block, in bytes.
    """

    block_rows: int
    threads: int
    thread_bytes: int

    @property
    def bytes_in_flight(self) -> int:
        """Memory of all threads with their blocks, in bytes."""
        return self.threads * self.thread_bytes


def size_blocks(
    room: float,
    max_rows: int,
    n_params: int,
    n_features: int = 1,
    *,
    threads: int | None = None,
    use_gpu: bool = False,
) -> BlockConfig:
    """Choose the rows of a block, so that the blocks of all threads together fit.

    The rows depend on the room and on the columns alone, not on the number of threads; where not
    all threads find room, fewer work.

    Parameters
    ----------
    room : float
        Memory for blocks, in bytes.
    max_rows : int
        Most rows of a block, a power of two.
    n_params, n_features : int
        Parameters, and coordinates of a row.
    threads : int, optional
        Most threads; by default the cores of this process.
    use_gpu : bool
        Whether blocks are computed on a GPU.
    """
    row_bytes = _row_bytes(n_params, n_features, use_gpu)
    rows = _block_rows(room / SIZING_THREADS, row_bytes)
    if rows < CALL_ROWS:
        # Not below what takes as much memory as the rest of a thread: it would gain nothing.
        rows = min(CALL_ROWS, _block_rows(max(room, 2 * THREAD_BYTES), row_bytes))
    rows = min(rows, max_rows)
    each = THREAD_BYTES + rows * row_bytes
    most = threads or available_cores()
    return BlockConfig(rows, max(1, min(most, int(room // each))), each)


def room_for_blocks(threshold: float) -> float:
    """Bytes left for blocks beside the solver, of a threshold in bytes.

    Where the threshold is hardly more than the solver's allowance, a quarter of it.
    """
    return max(threshold - SOLVER_BYTES, threshold / 4)


def size_sample(threshold: float, n_features: int = 1) -> int:
    """Rows of a sample of streamed data that a threshold in bytes leaves room for.

    Parameters
    ----------
    threshold : float
        Memory that the fit may use, in bytes.
    n_features : int
        Coordinates of a row.
    """
    row_bytes = SAMPLE_COPIES * 8 * (n_features + 2)
    return min(max(int(room_for_blocks(threshold) / row_bytes), MIN_SAMPLE_ROWS), SAMPLE_ROWS)


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """One worker of a cluster: the one with the least memory a thread.

    Attributes
    ----------
    memory_bytes : int
        Its memory limit; where it has none, its share of the machine's memory.
    threads : int
        Tasks that it runs at one time.
    base_bytes : int
        What it takes of that before it reads data.
    """

    memory_bytes: int
    threads: int
    base_bytes: int = WORKER_BASE_BYTES

    def room(self, safety_factor: float = SAFETY_FACTOR) -> float:
        """Memory for chunks, in bytes: what may be used, less what it holds; at least a quarter."""
        usable = self.memory_bytes * safety_factor
        return max(usable - self.base_bytes, usable / 4)


def size_stage(
    worker: WorkerMemory,
    n_params: int,
    n_features: int = 1,
    *,
    safety_factor: float = SAFETY_FACTOR,
    use_gpu: bool = False,
    small_memory: bool = False,
) -> BlockConfig:
    """Size the buffers of a worker through which the chunks of Dask arrays pass.

    They may take a quarter of the worker's room; the chunks need the rest. The number of threads
    is the worker's own, which a fit does not choose. All workers but the tightest have room for
    the largest buffers, so that the bits of a sum do not depend on how a cluster is divided.
    """
    limit = MAX_ROWS_SMALL if small_memory else MAX_ROWS["chunked"]
    row_bytes = _row_bytes(n_params, n_features, use_gpu)
    room = worker.room(safety_factor) / 4 / worker.threads
    rows = min(limit, _block_rows(room, row_bytes))
    return BlockConfig(rows, worker.threads, THREAD_BYTES + rows * row_bytes)


def check_chunk_fits(
    worker: WorkerMemory,
    chunk_bytes: int,
    chunks: tuple[int, ...],
    config: BlockConfig,
    safety_factor: float = SAFETY_FACTOR,
) -> None:
    """Refuse chunks with which a worker would run out of memory.

    Every thread of a worker reads one chunk at a time, and holds :data:`CHUNKS_A_THREAD` times its
    decoded size while it does.

    Parameters
    ----------
    worker : WorkerMemory
    chunk_bytes : int
        Decoded bytes of the largest chunk, of all arrays together.
    chunks : tuple of int
        Its shape.
    config : BlockConfig
        The worker's buffers, from :func:`size_stage`.
    safety_factor : float
        Share of the worker's memory that may be used.

    Raises
    ------
    InputError
        If a chunk is too large, with both sizes and the call that makes smaller ones; or if there
        is room for none, with the memory that has room for this one.
    """
    room = worker.room(safety_factor) / worker.threads - config.thread_bytes
    fitting = max(room, 0.0) / CHUNKS_A_THREAD
    if chunk_bytes <= fitting:
        return
    row_bytes = chunk_bytes / math.prod(chunks)
    if fitting < row_bytes:
        # Buffers take a quarter of the room, if that is twice what a thread takes beside its own.
        room = worker.threads * max(4 / 3 * CHUNKS_A_THREAD * chunk_bytes, 8 * THREAD_BYTES)
        least = min(room + worker.base_bytes, 4 * room) / safety_factor
        raise _errors.memory_too_small(worker.memory_bytes, worker.threads, least)
    smaller = fitting_chunks(chunks, int(fitting / row_bytes))
    raise _errors.chunk_too_large(
        chunks, chunk_bytes, worker.memory_bytes, worker.threads, int(fitting), smaller
    )


def check_held_fit(
    worker: WorkerMemory, held_bytes: int, safety_factor: float = SAFETY_FACTOR
) -> None:
    """Refuse chunks that must be kept through a fit where that leaves a worker too little room.

    Raises
    ------
    InputError
        If less than a quarter of what may be used is left, with both sizes and the remedy.
    """
    usable = worker.memory_bytes * safety_factor
    room = max(usable * 3 / 4 - worker.base_bytes, 0.0)
    if held_bytes > room:
        raise _errors.chunks_held(held_bytes, worker.memory_bytes, int(room))


def fitting_chunks(chunks: tuple[int, ...], max_rows: int) -> tuple[int, ...]:
    """Cut a chunk down to a number of rows, along the first dimensions first.

    Rows of one chunk then stay neighbours in storage of C order.

    Parameters
    ----------
    chunks : tuple of int
        Shape of the chunk, no dimension of which is 0.
    max_rows : int
        Most rows; below 1 counts as 1.
    """
    smaller: list[int] = []
    room = max(max_rows, 1)
    for n in reversed(chunks):
        smaller.append(min(n, room))
        room = max(room // n, 1)
    return tuple(reversed(smaller))


@dataclass(frozen=True, slots=True)
class MemoryBudgetSelector:
    """Chooses a strategy from the memory budget.

    Parameters
    ----------
    safety_factor : float
        Share of the available memory that a fit may use, in (0, 1].

    Raises
    ------
    InputError
        If the safety factor is out of its range.

    Examples
    --------
    >>> selector = MemoryBudgetSelector(safety_factor=0.75)
    >>> selector.select(n_points=10_000_000, n_params=10, memory_limit_gb=16.0)
    ('standard', None)
    >>> strategy, config = selector.select(n_points=10_000_000, n_params=10, memory_limit_gb=1.0)
    >>> strategy, config.block_rows
    ('chunked', 262144)
    """

    safety_factor: float = SAFETY_FACTOR

    def __post_init__(self) -> None:
        checked_safety_factor(self.safety_factor)

    def select(
        self,
        n_points: int,
        n_params: int,
        n_features: int = 1,
        memory_limit_gb: float | None = None,
        goal: OptimizationGoal | str | None = None,
        use_gpu: bool = False,
        budget: MemoryBudget | None = None,
        *,
        gpu_memory_gb: float | Callable[[], float] | None = None,
        threads: int | None = None,
    ) -> tuple[Strategy, BlockConfig | None]:
        """Choose the strategy for data in memory (or mapped to it).

        Rows beyond the threshold are streamed; else a peak beyond it is worked on in chunks; what
        fits, exactly at the threshold too, is standard. The goal MEMORY_EFFICIENT takes chunks in
        place of standard, and small blocks. Dask and Zarr arrays are always streamed.

        Parameters
        ----------
        n_points, n_params, n_features, memory_limit_gb, use_gpu, gpu_memory_gb
            As for :meth:`MemoryBudget.compute`.
        goal : OptimizationGoal, str or None
            What matters most.
        budget : MemoryBudget, optional
            A budget that is known already, in place of what would be computed.
        threads : int, optional
            Most threads; by default the cores of this process.

        Returns
        -------
        strategy : {"standard", "chunked", "streaming"}
        config : BlockConfig or None
            Rows of a block and threads; None for standard.

        Raises
        ------
        InputError
            If an argument is out of its range; the message names it.
        """
        sizes = checked_count("n_params", n_params), checked_count("n_features", n_features)
        rows = checked_count("n_points", n_points)
        computed = budget or MemoryBudget.compute(
            rows,
            *sizes,
            safety_factor=self.safety_factor,
            memory_limit_gb=memory_limit_gb,
            use_gpu=use_gpu,
            gpu_memory_gb=gpu_memory_gb,
        )
        wanted = OptimizationGoal.parse(goal)
        strategy = choose_strategy(computed, wanted)
        return strategy, blocks_for(
            strategy, computed, *sizes, goal=wanted, threads=threads, use_gpu=use_gpu
        )


def choose_strategy(budget: MemoryBudget, goal: OptimizationGoal | None = None) -> Strategy:
    """The strategy for data in memory that keeps a budget; see :class:`MemoryBudgetSelector`."""
    if not budget.data_fits:
        return "streaming"
    if not budget.fits_in_memory or GOAL_RULES[goal].small_memory:
        return "chunked"
    return "standard"


def blocks_for(
    strategy: Strategy,
    budget: MemoryBudget,
    n_params: int,
    n_features: int = 1,
    *,
    goal: OptimizationGoal | None = None,
    threads: int | None = None,
    use_gpu: bool = False,
) -> BlockConfig | None:
    """The blocks with which a strategy keeps a budget; None for standard, which has none."""
    if strategy == "standard":
        return None
    limit = MAX_ROWS_SMALL if GOAL_RULES[goal].small_memory else MAX_ROWS[strategy]
    room = room_for_blocks(budget.threshold_gb * GB)
    return size_blocks(room, limit, n_params, n_features, threads=threads, use_gpu=use_gpu)


def _row_bytes(n_params: int, n_features: int, use_gpu: bool) -> int:
    """Bytes of a row in a block: coordinates, observation and sigma, as read and as float64."""
    matrices = GPU_MATRICES * (n_params + 1) if use_gpu else 0
    return 16 * (n_features + 2) + 8 * matrices


def _block_rows(room: float, row_bytes: int) -> int:
    """Rows of a block for one thread with a room in bytes: a power of two, at least 1."""
    rows = int(max(room - THREAD_BYTES, room / 2) / row_bytes)
    return 1 << max(rows, 1).bit_length() - 1


def _available_gb(memory_limit_gb: Any, use_gpu: bool, gpu_memory_gb: Any) -> float:
    if memory_limit_gb is not None:
        return checked_gigabytes("memory_limit_gb", memory_limit_gb)
    if not use_gpu:
        return available_memory() / GB
    if gpu_memory_gb is not None:
        given = gpu_memory_gb() if callable(gpu_memory_gb) else gpu_memory_gb
        return checked_gigabytes("gpu_memory_gb", given)
    free = gpu_memory()
    if free is None:
        raise _errors.gpu_memory_unknown()
    return free / GB
