"""Settings of the suite, and the cluster that its tests share."""

from __future__ import annotations

import gc
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

#: Compiled kernels, kept from one run to the next. Compilation is most of the suite's time: a small
#: fit of a new model takes 350 ms of CPU time where its kernel is compiled, 60 where it is loaded.
COMPILED = Path(__file__).parents[1] / ".pytest_cache" / "jax"
#: Bytes of compiled kernels from which the folder is emptied. A run of the suite writes a fifth.
MOST_COMPILED = 300e6

#: Options of the compiler with which a kernel compiles in a third of the time, and runs slower.
#: Most tests compile for longer than they compute. A kernel that is not split for several threads
#: compiles in four fifths of the CPU time. From 0.11.1 on, jaxlib has no third option, and ends a
#: process that names the option.
QUICK_COMPILER = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if tuple(map(int, version("jaxlib").split(".")[:3])) < (0, 11, 1):
    QUICK_COMPILER += " --xla_cpu_use_fusion_emitters=false"

# Set before JAX is imported, and in the environment, so that the processes of clusters and of the
# tests that start an interpreter share the folder. An entry is found by its program, after tracing:
# tests that count compilations count traces, and their counts stay.
os.environ.setdefault("XLA_FLAGS", QUICK_COMPILER)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# An idle cluster of two workers takes a tenth of a processor: clocks tick 50 times a second, and a
# profiler looks at each worker 100 times a second. The clusters of the suite last for minutes.
os.environ.setdefault("DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL", "1s")
os.environ.setdefault("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "False")

# A trace makes many small objects, and nearly all stay: with Python's threshold of 700 new objects,
# collections are a tenth of the suite's CPU time, and find nothing.
gc.set_threshold(50_000)

# Compilation makes the first example slow and the rest fast, which a deadline cannot tell apart.
# The conformance suite's tests are inherited, which Hypothesis calls different executors.
settings.register_profile(
    "suite",
    deadline=None,
    max_examples=15,
    # The same examples in every run of CI, so that a commit is judged by itself; others by hand.
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)
settings.register_profile("thorough", settings.get_profile("suite"), max_examples=50)
# Where it only matters that a test fails, no smaller example is looked for: see mutations.py.
settings.register_profile(
    "first failure",
    settings.get_profile("suite"),
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # before pytest-xdist starts its workers
        empty_if_large(COMPILED)
    # Two processes share the folder without a lock. An entry that is half written is compiled anew.
    config.addinivalue_line(
        "filterwarnings", "ignore:Error reading persistent compilation cache entry"
    )
    # Hypothesis forbids strategies the random module, and sees it used when the threads of a
    # cluster that runs meanwhile use it.
    config.addinivalue_line(
        "filterwarnings", "ignore:Do not use the `random` module inside strategies"
    )


def empty_if_large(folder: Path) -> None:
    """Remove the compiled kernels where those of old versions of the code have piled up."""
    if sum(path.stat().st_size for path in folder.glob("*-cache")) > MOST_COMPILED:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # before tests are deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases that only a longer run has.

    Of a test with the mark ``every(n)``, all cases but each n-th are thorough. Of those that remain
    of a test with the mark ``quick(n)``, all but each n-th are slow.
    """
    cases: Counter[tuple[str, str]] = Counter()
    for item in items:
        for name, other in (("every", "thorough"), ("quick", "slow")):
            mark = item.get_closest_marker(name)
            if mark is None:
                continue
            if name == "quick" and item.get_closest_marker("thorough") is not None:
                continue
            case = (item.nodeid.split("[")[0], name)
            if cases[case] % mark.args[0]:
                item.add_marker(other)
            cases[case] += 1


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """Two workers of one thread, started once for all tests of a process that harm none."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as started:
        yield started


@pytest.fixture(scope="session")
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A client that is not the active one: other tests compute in this process."""
    from distributed import Client

    with Client(cluster, set_as_default=False) as connected:
        yield connected
