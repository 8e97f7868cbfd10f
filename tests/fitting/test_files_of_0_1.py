"""Files of version 0.1 are read, and the status of a finished fit is judged by today's rule."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import CheckpointWarning, FitResult, InputError, Status
from nlsq_dask.user_model.model import prepare_model
from tests.fitting import fits_of_0_1

FILES = Path(__file__).parents[1] / "data" / "v0.1"


def content_of(path):
    return json.loads(json.loads(path.read_text())["content"])


def rewrite(path, content):
    text = json.dumps(content)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps({"sha256": digest, "content": text}))


@pytest.fixture(params=["finished", "arrived", "unfinished"])
def any_name(request):
    return request.param


def copy_of(name, directory):
    """A copy of a directory of checkpoints, to go on in."""
    copy = directory / name
    shutil.copytree(FILES / name, copy)
    if sys.version_info[:2] != fits_of_0_1.PYTHON:  # another bytecode is another model
        (path,) = copy.iterdir()
        content = content_of(path)
        content["problem"]["model"] = prepare_model(fits_of_0_1.decay).untraced().key
        rewrite(path, content)
    return copy


def test_a_finished_fit_that_is_no_success_today_goes_on(tmp_path):
    directory = copy_of("finished", tmp_path)
    (path,) = directory.iterdir()
    saved = content_of(path)["state"]
    result = fits_of_0_1.finished(directory, resume=True)
    fresh = fits_of_0_1.finished(**fits_of_0_1.ACCURATE)
    assert saved["status"] == Status.STEP
    assert result.success
    assert result.scipy_status is Status.STEP
    assert result.distance_to_optimum_sigma < 0.1
    assert (abs(result.popt - fresh.popt) < 0.1 * fresh.perr).all()
    # The evaluations of before count, and one pass judges the point again.
    assert result.nfev > saved["nfev"]
    assert result.n_passes == result.nfev + 1
    assert [record.cost for record in result.history[:4]] == [r["cost"] for r in saved["history"]]
    # What it writes is of today.
    again = fits_of_0_1.finished(directory, resume=True)
    np.testing.assert_array_equal(again.popt, result.popt)
    assert again.n_passes == result.n_passes


def test_a_finished_fit_that_is_a_success_today_ends_after_one_pass(tmp_path):
    result = fits_of_0_1.finished(copy_of("arrived", tmp_path), resume=True, **fits_of_0_1.ACCURATE)
    fresh = fits_of_0_1.finished(**fits_of_0_1.ACCURATE)
    assert result.success
    assert result.nfev == fresh.nfev
    assert result.n_passes == fresh.n_passes + 1
    np.testing.assert_allclose(result.popt, fresh.popt, rtol=1e-9)
    np.testing.assert_allclose(result.pcov, fresh.pcov, rtol=1e-6)
    assert result.moments.variance == fresh.moments.variance == fits_of_0_1.X.size


@pytest.mark.slow
def test_an_unfinished_robust_fit_of_streamed_rows_goes_on(tmp_path):
    directory = copy_of("unfinished", tmp_path)
    (path,) = directory.iterdir()
    saved = content_of(path)
    result = fits_of_0_1.unfinished(directory, resume=True)
    fresh = fits_of_0_1.unfinished()
    assert saved["state"]["status"] is None
    assert result.success
    assert (abs(result.popt - fresh.popt) < 1e-3 * fresh.perr).all()
    np.testing.assert_allclose(result.pcov, fresh.pcov, rtol=1e-3)
    assert result.moments.n_small == pytest.approx(fresh.moments.n_small, rel=1e-3)
    assert result.pilot.n_rows == saved["pilot"]["n_rows"]
    assert result.pilot.params.tolist() == saved["pilot"]["params"]
    assert result.n_passes > saved["n_passes"]


def other_decay(x, a, b, c):
    return a * jnp.exp(-b * x) + 2 * c


def test_another_fit_is_refused(any_name, tmp_path, monkeypatch):
    directory = copy_of(any_name, tmp_path)
    again = fits_of_0_1.unfinished if any_name == "unfinished" else fits_of_0_1.finished
    changes = fits_of_0_1.ACCURATE if any_name == "arrived" else {}
    with pytest.raises(InputError, match="of another fit: bounds differ"):
        again(directory, resume=True, **changes, bounds=(-9.0, 9.0))
    monkeypatch.setattr(fits_of_0_1, "decay", other_decay)
    with pytest.raises(InputError, match="of another fit: model differ"):
        again(directory, resume=True, **changes)


def test_a_format_that_is_not_known_is_named(tmp_path):
    directory = copy_of("finished", tmp_path)
    (path,) = directory.iterdir()
    rewrite(path, content_of(path) | {"format": "nlsq_dask checkpoint 3"})
    with pytest.warns(CheckpointWarning, match="format 'nlsq_dask checkpoint 3'.* does not read"):
        result = fits_of_0_1.finished(directory, resume=True)
    np.testing.assert_array_equal(result.popt, fits_of_0_1.finished().popt)


# Results


def changed_result(directory, **changes):
    """The result of version 0.1, with other fields."""
    saved = json.loads((FILES / "result.json").read_text())["result"] | changes
    text = json.dumps(saved, sort_keys=True)
    envelope = {"format": "nlsq_dask result", "version": 1, "result": saved}
    path = directory / "result.json"
    path.write_text(json.dumps(envelope | {"sha256": hashlib.sha256(text.encode()).hexdigest()}))
    return FitResult.load(path)


def test_a_result_far_from_the_optimum_is_no_success_today(tmp_path):
    result = FitResult.load(FILES / "result.json", model=fits_of_0_1.decay)
    assert result.status is Status.STALLED
    assert result.scipy_status is Status.STEP
    assert not result.success
    assert result.distance_to_optimum_sigma > 10
    assert result.predict(fits_of_0_1.X).shape == fits_of_0_1.X.shape
    result.save(tmp_path / "again.json")
    assert FitResult.load(tmp_path / "again.json").status is Status.STALLED


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"distance_to_optimum_sigma": 0.09}, Status.STEP),
        ({"distance_to_optimum_sigma": "nan"}, Status.STEP),
        ({"distance_to_optimum_sigma": 1e-9, "status": 5}, Status.STATISTICAL),
        # An exact fit: the residuals are rounding errors, and so is the distance.
        ({"cost": 1e-40, "chi2": 2e-40}, Status.STEP),
        ({"status": 0}, Status.MAX_EVALUATIONS),
        ({"status": -2}, Status.CALLBACK),
        ({"tolerances": {"ftol": None, "xtol": 0.2, "gtol": None, "stat_tol": 50.0}}, Status.STEP),
    ],
)
def test_the_status_of_a_result_is_judged_by_its_distance(tmp_path, changes, status):
    result = changed_result(tmp_path, **changes)
    assert result.status is status
    assert result.scipy_status is (status if 1 <= status <= 4 else None)


def test_parameters_without_effect_are_named(tmp_path):
    factor = [[-1.0, 2.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]
    result = changed_result(tmp_path, r_factor=factor, distance_to_optimum_sigma=0.0)
    assert result.status is Status.UNDETERMINED
    assert result.undetermined == ("a", "b")


def test_the_pilot_of_a_result_is_read(tmp_path):
    pilot = content_of(FILES / "unfinished" / "checkpoint-00000001.json")["pilot"]
    assert "trials" in pilot
    assert changed_result(tmp_path, pilot=pilot).pilot.n_rows == pilot["n_rows"]
