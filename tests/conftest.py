"""Settings of the suite, and the cluster that its tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

# Compilation makes the first example slow and the rest fast, which a deadline cannot tell apart.
# The conformance suite's tests are inherited, which Hypothesis calls different executors.
settings.register_profile(
    "suite",
    deadline=None,
    max_examples=25,
    # The same examples in every run of CI, so that a commit is judged by itself; others by hand.
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    # Hypothesis forbids strategies the random module, and sees it used when the threads of a
    # cluster that runs meanwhile use it.
    config.addinivalue_line(
        "filterwarnings", "ignore:Do not use the `random` module inside strategies"
    )


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """Two worker processes of one thread, started once for all tests that harm no worker."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as started:
        yield started


@pytest.fixture(scope="session")
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A client that is not the active one: other tests compute in this process."""
    from distributed import Client

    with Client(cluster, set_as_default=False) as connected:
        yield connected
