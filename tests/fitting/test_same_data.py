"""Data that change while a fit reads them, and checkpoints of other data."""

from __future__ import annotations

from dataclasses import replace

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import DataChangedError, fit, fit_models
from nlsq_dask.core.normal_equations import Moments
from nlsq_dask.fitting.ledger import Ledger
from nlsq_dask.fitting.same_data import _differing
from tests.support.same_result import assert_same_result

X = np.linspace(0, 4, 2000)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * np.sin(31 * X)
#: All rows in every pass, from a start that takes several.
OPTIONS = {"p0": [1, 1, 0], "pilot": False, "cache": False, "progress": False}


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


class Changing:
    """Blocks of y that are other ones from some pass on."""

    def __init__(self, change, from_pass, blocks=10):
        self.change, self.from_pass, self.blocks = change, from_pass, blocks
        self.reads = 0

    def __call__(self, block):
        self.reads += 1
        late = (self.reads - 1) // self.blocks + 1 >= self.from_pass
        return self.change(block.copy()) if late else block

    @property
    def y(self):
        y = da.from_array(Y, chunks=Y.size // self.blocks)
        return y.map_blocks(self, dtype=float, meta=np.empty(0))


def with_nan(block):
    block[3] = np.nan
    return block


def shifted(block):
    return block + 1e-6


@pytest.fixture(autouse=True)
def one_pass_after_the_other(request):
    import dask

    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.mark.parametrize("from_pass", [2, 3])
def test_rows_that_are_left_out_from_some_pass_on(from_pass):
    changing = Changing(with_nan, from_pass)
    with pytest.raises(DataChangedError) as caught:
        fit(decay, X, changing.y, nan_policy="omit", **OPTIONS)
    text = str(caught.value)
    assert "an earlier pass had 2,000 rows and left out 0, and this pass had 1,990" in text
    assert changing.reads == 10 * from_pass


@pytest.mark.parametrize("name", ["x", "sigma"])
def test_coordinates_and_errors_that_change(name):
    values = {"x": X + 1.0, "sigma": np.full(Y.size, 0.05)}
    lazy = {n: da.from_array(v, chunks=200) for n, v in values.items()}
    changing = Changing(shifted, 3)
    lazy[name] = lazy[name].map_blocks(changing, dtype=float, meta=np.empty(0))
    y, what = da.from_array(Y, chunks=200), r"\|x\|" if name == "x" else "1 / sigma"
    with pytest.raises(DataChangedError, match=rf"the sum of every 512th value of {what} was"):
        fit(decay, lazy["x"], y, sigma=lazy["sigma"], **OPTIONS)


def test_nan_that_appear_are_named_after_a_few_passes():
    changing = Changing(with_nan, 3)
    with pytest.raises(DataChangedError) as caught:
        fit(decay, X, changing.y, **OPTIONS)
    text = str(caught.value)
    assert "y has 10 values that are NaN or infinite" in text
    assert "(3,)" in text
    assert "They were finite in an earlier pass" in text
    assert changing.reads == 10 * (2 + 3 + 1)


@pytest.mark.parametrize("from_pass", [2, 3])
def test_values_that_change_are_noticed_in_the_pass_that_reads_them(from_pass):
    changing = Changing(shifted, from_pass)
    with pytest.raises(DataChangedError, match=r"512th value of y was .* in an earlier pass"):
        fit(decay, X, changing.y, **OPTIONS)
    assert changing.reads == 10 * from_pass


@pytest.mark.slow
def test_data_that_stay_are_not_complained_about():
    """Also for a model that is not finite at several trials in a row."""

    def steep(x, a, b, c):
        return jnp.where(jnp.abs(b) < 1.31, a * jnp.exp(-b * x) + c, jnp.nan)

    changing = Changing(shifted, 10**9)
    fit(steep, X, changing.y, **{**OPTIONS, "p0": [1, 1.2, 0]})


@pytest.mark.parametrize("name", ["weight", "mean", "scatter"])
def test_moments_that_differ_by_more_than_rounding(name):
    first = {"weight": 1e9, "mean": -3.0, "scatter": 5.0}
    same = Moments(**{**first, name: first[name] * (1 + 1e-14)})
    other = Moments(**{**first, name: first[name] * (1 + 1e-8) + 1.0})
    assert _differing(Moments(**first), same) is None
    assert _differing(Moments(**first), other) == name


# Checkpoints of other data

KINDS = pytest.mark.parametrize("lazy", [False, True], ids=["in memory", "streamed"])


def data_of(y, lazy):
    return (da.from_array(X, chunks=200), da.from_array(y, chunks=200)) if lazy else (X, y)


@KINDS
def test_a_finished_checkpoint_of_other_data_is_refused(lazy, tmp_path):
    options = OPTIONS | {"checkpoint": tmp_path}
    whole = fit(decay, *data_of(Y, lazy), **options)
    resumed = fit(decay, *data_of(Y, lazy), **options, resume=True)
    assert_same_result(resumed, whole)
    assert (whole.n_passes_before, resumed.n_passes_before) == (0, whole.n_passes)
    assert "resumed from a finished checkpoint, in this run none" in str(resumed)
    assert "resumed" not in str(whole)
    with pytest.raises(DataChangedError, match=r"ended on other data: the rows y\["):
        fit(decay, *data_of(Y + 0.01 * X, lazy), **options, resume=True)


def test_a_finished_checkpoint_costs_a_block(tmp_path):
    reads = Changing(shifted, 10**9)
    options = OPTIONS | {"checkpoint": tmp_path}
    whole = fit(decay, X, reads.y, **options)
    assert reads.reads == 10 * whole.n_passes + 1
    before = reads.reads
    fit(decay, X, reads.y, **options, resume=True)
    assert reads.reads == before + 1


def test_a_store_that_fails_after_the_last_pass_does_not_fail_the_fit(tmp_path):
    n_passes = fit(decay, X, Changing(shifted, 10**9).y, **OPTIONS).n_passes

    def gone(_):
        raise OSError("away")

    changing = Changing(gone, n_passes + 1)
    result = fit(decay, X, changing.y, **OPTIONS, checkpoint=tmp_path, retries=0)
    assert result.success
    assert changing.reads == 10 * n_passes + 1


class Stop(Exception):
    pass


def stopped_after(passes):
    def callback(intermediate_result):
        if intermediate_result.nfev >= passes:
            raise Stop

    return callback


@KINDS
def test_a_checkpoint_in_mid_fit_of_other_data_is_refused(lazy, tmp_path):
    options = OPTIONS | {"checkpoint": tmp_path}
    with pytest.raises(Stop):
        fit(decay, *data_of(Y, lazy), **options, callback=stopped_after(2))
    with pytest.raises(DataChangedError, match="in the run that left the checkpoint"):
        fit(decay, *data_of(Y + 0.01 * X, lazy), **options, resume=True)
    resumed = fit(decay, *data_of(Y, lazy), **options, resume=True)
    assert_same_result(resumed, fit(decay, *data_of(Y, lazy), **OPTIONS))
    assert 0 < resumed.n_passes_before < resumed.n_passes
    assert f"{resumed.n_passes - resumed.n_passes_before} of them in this run" in str(resumed)


def test_checkpoints_of_several_models_are_compared_as_well(tmp_path):
    options = {"p0": [[1, 1, 0]], "pilot": False, "checkpoint": tmp_path}
    fit_models([decay], X, Y, **options)
    resumed = fit_models([decay], X, Y, **options, resume=True)[0]
    assert resumed.n_passes_before == resumed.n_passes
    with pytest.raises(DataChangedError):
        fit_models([decay], X, Y + 0.01 * X, **options, resume=True)


def test_moments_whose_squares_exceed_float64_are_compared():
    """As those of a checkpoint with odd content: Python's power would raise an OverflowError."""
    huge = Moments(weight=1.0, mean=1e200, scatter=1.0)
    assert _differing(huge, Moments(weight=1.0, mean=0.0, scatter=1.0)) == "mean"
    assert _differing(huge, huge) is None


def test_rows_in_memory_are_compared_with_answers_of_an_earlier_run(tmp_path, monkeypatch):
    ask, asked = Ledger.ask, []

    def of_other_data(self, question):
        asked.append(question)
        answer = ask(self, question)
        return replace(answer, sample_of_y=1e3) if len(asked) == 1 else answer

    monkeypatch.setattr(Ledger, "ask", of_other_data)
    with pytest.raises(DataChangedError):
        fit(decay, X, Y, checkpoint=tmp_path, **OPTIONS)
    asked.clear()
    assert fit(decay, X, Y, **OPTIONS).success  # without a ledger nothing comes from elsewhere
    assert not asked
