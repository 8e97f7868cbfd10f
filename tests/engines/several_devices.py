"""Fits on simulated devices of the CPU, run as a program with two of them.

Prints the names of the cases that passed.
"""

import tempfile

import dask
import dask.array as da
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import ConvergenceWarning, InputError, fit, fit_each, plan, plan_each
from nlsq_dask.kernels import compiled
from nlsq_dask.kernels.devices import check_names_no_devices, checked_device

N_ROWS, CHUNK = 100_000, 12_500


def model(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def count_placements():
    """Counter of the calls of kernels by device, filled from now on."""
    placed = dict.fromkeys(jax.devices("cpu"), 0)
    fetch = compiled.CompiledKernel._fetch

    def counted(self, function, at, rows, device):
        def seen(*args):
            result = function(*args)
            (where,) = result.devices()
            placed[where] += 1
            return result

        return fetch(self, seen, at, rows, device)

    compiled.CompiledKernel._fetch = counted
    return placed


def cases():
    rng = np.random.default_rng(0)
    x = np.linspace(0.0, 3.0, N_ROWS)
    y = 2.0 * np.exp(-1.3 * x) + 0.5 + 0.1 * rng.normal(size=N_ROWS)
    lazy_x, lazy_y = (da.from_array(a, CHUNK).map_blocks(np.copy) for a in (x, y))
    sigma, mask = rng.uniform(0.1, 0.2, N_ROWS), rng.random(N_ROWS) < 0.9
    in_memory, lazy = (x, y), (lazy_x, lazy_y)
    yield "standard", in_memory, {"strategy": "standard"}
    yield "streaming", lazy, {"cache": False}
    yield "kept rows", lazy, {"cache": True}
    robust = {"sigma": sigma, "mask": mask, "loss": "soft_l1"}
    yield "chunked, robust, weights and a mask", in_memory, {"strategy": "chunked", **robust}


def bits(result):
    return result.popt.tobytes(), result.pcov.tobytes()


def check_fits(devices, placed):
    start, plain = [1.0, 1.0, 0.0], {"pilot": False, "collapse": False}
    for name, (x, y), options in cases():
        alone = fit(model, x, y, start, device=devices[:1], **plain, **options)
        placed.update(dict.fromkeys(placed, 0))
        together = fit(model, x, y, start, device=devices, **plain, **options)
        assert bits(alone) == bits(together), name
        assert min(placed.values()) > 0, (name, placed)
        print(name)
    placed.update(dict.fromkeys(placed, 0))
    fit(model, x, y, start, **plain, **options)
    assert [d for d, n in placed.items() if n] == [devices[0]], "one device of a CPU by default"


def check_maps(devices):
    x = np.linspace(0.0, 3.0, 20)
    y = np.exp(-x[:, None] * np.linspace(0.5, 1.5, 64)) + 0.5
    maps = [fit_each(model, x, y, p0=[1.0, 1.0, 0.0], device=d) for d in (devices, None)]
    assert np.array_equal(maps[0].popt, maps[1].popt)
    assert plan_each(model, x, y, p0=[1.0, 1.0, 0.0], device=devices).strategy == "standard"
    print("maps")


def stop_after_first(state):
    raise StopIteration


def check_resumed(devices, folder):
    """A fit on one device goes on with two, to the same bits."""
    x, y = next(cases())[1]
    start, options = [1.0, 1.0, 0.0], {"pilot": False, "collapse": False}
    options["strategy"] = "chunked"
    whole = fit(model, x, y, start, device=devices[:1], **options)
    with pytest.warns(ConvergenceWarning):
        fit(
            model,
            x,
            y,
            start,
            device=devices[:1],
            checkpoint=folder,
            callback=stop_after_first,
            **options,
        )
    resumed = fit(model, x, y, start, device=devices, checkpoint=folder, resume=True, **options)
    assert resumed.n_passes_before > 0
    assert bits(resumed) == bits(whole)
    print("resumed")


def check_plan(devices):
    x, y = next(cases())[1]
    plans = [plan(model, x, y, [1.0, 1.0, 0.0], device=d) for d in (devices, None)]
    assert [p.devices for p in plans] == [("cpu:0", "cpu:1"), ("cpu:0",)]
    assert ["cpu:0, cpu:1" in str(p) for p in plans] == [True, False]
    print("plan")


def check_errors(devices):
    assert checked_device(["cpu"]) == checked_device(devices) == ("cpu:0", "cpu:1")
    assert checked_device(devices[1]) == checked_device("cpu:1") == ("cpu:1",)
    first = devices[0]
    wrong = {
        "names no device": [],
        "cpu:0 more than once": [first, "cpu"],
        "devices of cpu and gpu": ["cpu:0", "gpu:0"],
        "'cpu:9' is not available": "cpu:9",
        "device=3 is not available": 3,
        "device='tpu' is not available": "tpu",
    }
    for text, device in wrong.items():
        try:
            fit(model, [0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.5], device=device)
        except InputError as error:
            assert text in str(error), error
        else:
            raise AssertionError(text)
    with pytest.raises(InputError, match="workers of a cluster compute"):
        check_names_no_devices(("cpu:0", "cpu:1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "process_index", lambda: 1)
        with pytest.raises(InputError, match="a device of JAX process 0"):
            checked_device(devices)
    print("errors")


if __name__ == "__main__":
    dask.config.set(scheduler="threads", num_workers=2)
    devices = jax.devices("cpu")
    assert len(devices) == 2
    placed = count_placements()
    check_fits(devices, placed)
    check_maps(devices)
    check_plan(devices)
    with tempfile.TemporaryDirectory() as folder:
        check_resumed(devices, folder)
    check_errors(devices)
