"""Where tasks run: what a client stands for, and that no other code looks for a client."""

import re
from pathlib import Path
from types import SimpleNamespace

import dask.array as da
import numpy as np
import pytest

import nlsq_dask
from nlsq_dask import InputError, InputTypeError, fit_each, plan_each
from nlsq_dask.engines.dask.executor import LOCAL, LocalExecutor, executor_of

PACKAGE = Path(nlsq_dask.__file__).parent
T = np.arange(6.0)


def slope(x, a):
    return a * x


def series():
    return da.from_array(np.outer(T, [1.0, 2.0, 3.0]), chunks=(6, 2))


def fake_client(**attributes):
    """A client by its attributes; nothing can be computed on it."""
    own = {"scheduler": None, "submit": None, "asynchronous": False, "status": "running"}
    return SimpleNamespace(**(own | attributes))


def test_without_a_client_tasks_run_on_the_local_scheduler():
    assert executor_of(None) is LOCAL
    assert executor_of(None, lazy=False) is LOCAL
    assert LocalExecutor() == LOCAL


def test_the_active_client_is_for_lazy_data_and_a_named_client_for_all(monkeypatch):
    active, named = fake_client(), fake_client()
    monkeypatch.setattr("nlsq_dask.engines.dask.scheduler.active_client", lambda: active)
    assert executor_of(None).client is active
    assert executor_of(None, lazy=False) is LOCAL
    assert executor_of(named).client is named
    assert executor_of(named, lazy=False).client is named


@pytest.mark.parametrize("function", [fit_each, plan_each])
@pytest.mark.parametrize("client", ["tcp://10.0.0.1:8786", SimpleNamespace(scheduler=None)])
def test_many_fits_refuse_what_is_no_client(function, client):
    with pytest.raises(InputTypeError, match="client"):
        function(slope, T, series(), [1.0], client=client)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [({"asynchronous": True}, "the client is asynchronous"), ({"status": "closed"}, "is closed")],
)
def test_maps_are_not_written_through_a_client_that_would_hang(tmp_path, attributes, said):
    client = fake_client(**attributes)
    with pytest.raises(InputError, match=said):
        fit_each(slope, T, series(), [1.0], client=client, store=tmp_path / "maps.zarr")
    assert not (tmp_path / "maps.zarr").exists()


def test_only_executors_look_for_a_client():
    asking = re.compile(r"client is (not )?None")
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if asking.search(path.read_text())
    }
    assert found == {"engines/dask/executor.py"}


def test_only_the_dask_engine_knows_of_clients():
    """Beside the functions with the argument ``client``, and the value that carries it."""
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"from distributed import .*Client", path.read_text())
    }
    others = {path for path in found if not path.startswith("engines/dask/")}
    functions = {f"api/{name}.py" for name in ("fit", "fit_each", "fit_models")}
    assert others == functions | {"fitting/options.py"}
