"""The memory budget of a fit, the strategy that keeps it, and the size of the blocks.

For n rows of f features, p parameters and d bytes a number, a solver that holds everything needs

    data = n (f + 1) d        Jacobian = n p d
    peak = data + 1.3 Jacobian + 8 p² + 0.1 GB

where 1.3 stands for the Jacobian and its temporary pieces. The three strategies need less and less
memory: *standard* keeps all rows ready for the kernel, *chunked* prepares blocks of the user's
arrays, *streaming* reads blocks. A gigabyte (GB) is 1e9 bytes in all of this package. Everything in
this module is arithmetic on numbers, before anything runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from nlsq_dask import _errors
from nlsq_dask.core.checks import checked_count, checked_gigabytes, checked_safety_factor
from nlsq_dask.core.goals import GOAL_RULES, OptimizationGoal
from nlsq_dask.core.resources import available_cores, available_memory, gpu_memory
from nlsq_dask.core.structure import whole_series

Strategy = Literal["standard", "chunked", "streaming"]

#: Bytes in a gigabyte.
GB = 1_000_000_000

#: Share of the available memory that a fit may use.
SAFETY_FACTOR = 0.75

#: Jacobians in memory at one time, with temporary pieces.
JACOBIAN_COPIES = 1.3

#: Memory of the solver, the compiler and the compiled code, in bytes.
SOLVER_BYTES = GB // 10

# Rows and Jacobian of so many bytes change nothing that a process notices: they fit whatever memory
# is free. Reading the memory takes a twentieth of the time of a fit of 100 rows.
SMALL_BYTES = 1_000_000

# Most rows of a block. Chunked: the rows of the staging buffer; longer blocks are no faster.
# Streaming: 8 MB of float64, the fastest of 1, 8 and 64 MB. Smallest memory: about as much work as
# waking a thread.
MAX_ROWS = {"chunked": 1 << 18, "streaming": 1 << 20}
MAX_ROWS_SMALL = 1 << 15

# Rows whose work costs as much as calling the kernel. With little memory, fewer threads run rather
# than blocks get shorter.
CALL_ROWS = 1 << 13

# Number of threads for the size of blocks. A constant, so that the cuts between blocks, and with
# them the last bits of a sum, do not depend on the number of cores.
SIZING_THREADS = 16

# Memory of one thread beside its block: the matrix of one tile (64 KiB, packed twice by the matrix
# product) and the model's intermediate values on it.
THREAD_BYTES = 1 << 20

# Matrices of a tile that no cache holds: a block on a GPU, or a whole series. They are derivatives,
# their masked copy, and intermediate values.
GPU_MATRICES = 3

# Most and fewest rows of the sample of streamed data for several starts. With 10 parameters a fit
# of the most rows takes about a second. Fewer than the fewest rows cannot tell starts apart.
MOST_SAMPLE_ROWS = 1_000_000
MIN_SAMPLE_ROWS = CALL_ROWS

# Copies of a sample at the peak of taking it: its parts, their sums (twice), and the rows ready for
# the kernel.
SAMPLE_COPIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """The available memory and the memory of a fit, in GB (1e9 bytes).

    Attributes
    ----------
    available_gb : float
        Memory that the process (or one worker) can take. Infinite for a fit of so few rows that its
        memory was not read.
    threshold_gb : float
        Memory that the fit may take: ``available_gb * safety_factor``.
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
        few_rows_fit: bool = False,
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
            Memory to assume, in GB. By default the free memory of the machine and of the cgroups
            around this process, or of the GPU.
        use_gpu : bool
            Use the GPU's memory.
        gpu_memory_gb : float or callable, optional
            The GPU's memory in GB, or a function that returns it; by default JAX's number, if JAX
            is loaded.
        few_rows_fit : bool
            Whether rows and Jacobian of at most a megabyte fit whatever memory is free. Then the
            memory is not read, and counts as infinite.

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
        data, jacobian = rows * columns * item, rows * p * item
        unread = few_rows_fit and data + jacobian <= SMALL_BYTES
        if unread and memory_limit_gb is None and not use_gpu:
            available = math.inf
        else:
            available = _available_gb(memory_limit_gb, use_gpu, gpu_memory_gb)
        # The solver works in float64 for any type of the data.
        peak = data + JACOBIAN_COPIES * jacobian + 8 * p * p + SOLVER_BYTES
        return cls(
            available_gb=available,
            threshold_gb=available * share,
            data_gb=data / GB,
            jacobian_gb=jacobian / GB,
            peak_gb=peak / GB,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockConfig:
    """The blocks of a chunked or streaming fit.

    Attributes
    ----------
    block_rows : int
        Most rows of one block: a power of two, of rows or of whole series. For Dask arrays with
        their own chunks, the rows of the buffer that a chunk passes through.
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

    def in_series(self, series_rows: int, n_params: int, n_features: int) -> BlockConfig:
        """Blocks of whole series, and of the model's values on a series, which cannot be cut."""
        rows = whole_series(self.block_rows, series_rows)
        more = max(rows - self.block_rows, 0) * bytes_of_row(n_params, n_features, False)
        more += bytes_of_series(series_rows, n_params)
        return replace(self, block_rows=rows, thread_bytes=self.thread_bytes + more)

    def with_fewer_threads(self, room: float) -> BlockConfig:
        """The same blocks on as many of the threads as fit in a room in bytes, at least one."""
        return replace(self, threads=max(1, min(self.threads, int(room // self.thread_bytes))))


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

    The rows depend on the room and on the columns alone. If there is no room for all threads, fewer
    threads work.

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
    row_bytes = bytes_of_row(n_params, n_features, use_gpu)
    rows = rows_within(room / SIZING_THREADS, row_bytes)
    if rows < CALL_ROWS:
        # A block with less memory than the rest of a thread would gain nothing.
        rows = min(CALL_ROWS, rows_within(max(room, 2 * THREAD_BYTES), row_bytes))
    rows = min(rows, max_rows)
    each = THREAD_BYTES + rows * row_bytes
    most = threads or available_cores()
    return BlockConfig(
        block_rows=rows, threads=max(1, min(most, int(room // each))), thread_bytes=each
    )


def room_for_blocks(threshold: float) -> float:
    """Bytes for blocks beside the solver, for a threshold in bytes; at least a quarter of it."""
    return max(threshold - SOLVER_BYTES, threshold / 4)


def size_sample(threshold: float, n_features: int = 1) -> int:
    """Rows of a sample of streamed data, for a threshold in bytes.

    Parameters
    ----------
    threshold : float
        Memory that the fit may use, in bytes.
    n_features : int
        Coordinates of a row.
    """
    row_bytes = SAMPLE_COPIES * 8 * (n_features + 2)
    return min(max(int(room_for_blocks(threshold) / row_bytes), MIN_SAMPLE_ROWS), MOST_SAMPLE_ROWS)


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

        "streaming" if the rows exceed the threshold, "chunked" if the peak exceeds the threshold,
        else "standard". The goal MEMORY_EFFICIENT takes "chunked" in place of "standard", and small
        blocks. Dask and Zarr arrays are always streamed.

        Parameters
        ----------
        n_points, n_params, n_features, memory_limit_gb, use_gpu, gpu_memory_gb
            As for :meth:`MemoryBudget.compute`.
        goal : OptimizationGoal, str or None
            The main goal of the fit.
        budget : MemoryBudget, optional
            A budget in place of the computed one.
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
    """The strategy for data in memory within a budget; see :class:`MemoryBudgetSelector`."""
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
    """The blocks of a strategy within a budget; None for "standard"."""
    if strategy == "standard":
        return None
    limit = MAX_ROWS_SMALL if GOAL_RULES[goal].small_memory else MAX_ROWS[strategy]
    room = room_for_blocks(budget.threshold_gb * GB)
    return size_blocks(room, limit, n_params, n_features, threads=threads, use_gpu=use_gpu)


def bytes_of_row(n_params: int, n_features: int, use_gpu: bool) -> int:
    """Bytes of a row in a block: coordinates, observation and sigma, as read and as float64."""
    matrices = GPU_MATRICES * (n_params + 1) if use_gpu else 0
    return 16 * (n_features + 2) + 8 * matrices


def bytes_of_series(series_rows: int, n_params: int) -> int:
    """Bytes of a model's values, and of their derivatives, on one series."""
    return 8 * GPU_MATRICES * (n_params + 1) * series_rows


def rows_within(room: float, row_bytes: int) -> int:
    """Rows of a block in a room in bytes for one thread: a power of two, at least 1."""
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
