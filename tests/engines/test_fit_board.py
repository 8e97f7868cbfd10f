"""Fits on the dashboard of a cluster: the board, its events, and the page."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import dask
import dask.array as da
import numpy as np
import pytest

from nlsq_dask import ConvergenceWarning, InputError, ReadingError, fit, fit_each, fit_models
from nlsq_dask.core.float_bins import FloatBins
from nlsq_dask.engines.dask.fit_board import MOST_FITS, MOST_RATES, PLUGIN_NAME, FitBoard
from nlsq_dask.engines.dask.signals import BOARD_TOPIC
from tests.support.problems import decays

X = np.linspace(0, 4, 2000)
Y = np.exp(-1.3 * X) + np.random.default_rng(1).normal(0, 0.01, X.size)
POINT = {"number": 1, "cost": 2.0, "distance": 0.5, "params": [1.0], "errors": [0.1]}


def lazy_fit(client, **options):
    x, y = (da.from_array(a, chunks=100) for a in (X, Y))
    return fit(decays, x, y, [10.0], client=client, **options)


def begin(board, fit, **known):
    board.take({"fit": fit, "kind": "begin", "title": "decay", "names": ["a"], **known})


# The board


def test_a_board_keeps_what_it_is_told():
    board = FitBoard()
    begin(board, "f", client="c", grid=[4], groups=[[0, 1], [2, 3]])
    moment = {"fit": "f", "kind": "moment", "phase": "pass", "seconds": 1.5, "number": 1}
    board.take(moment | {"bytes_per_second": 1e6, "blocks": [1, 4], "new_points": [POINT]})
    groups = {"fit": "f", "kind": "groups"}
    board.take(groups | {"first": 0, "chi2_rows": [1.0, 2.0], "rows": [5, 5]})
    board.take(groups | {"first": 1, "chi2_rows": [3.0], "rows": [4]})
    counts = FloatBins.of(np.array([0.0, 0.1, 0.2])).as_bytes()
    board.take({"fit": "f", "kind": "residuals", "group": 1, **counts})
    board.take({"fit": "f", "kind": "end", "outcome": "converged", "success": True})
    (told,) = json.loads(json.dumps(board.as_json()))
    assert (told["title"], told["phase"], told["seconds"]) == ("decay", "pass", 1.5)
    assert told["points"] == [POINT]
    assert told["rates"] == [[1.5, 1e6]]
    assert told["moment"]["blocks"] == [1, 4]
    assert told["chi2_rows"] == {"0": 1.0, "1": 3.0}
    assert sum(told["histogram"]["counts"]) == told["histogram"]["n_shown"] == 3
    assert told["histogram"]["n_rows"] == 9
    assert told["success"]


def test_a_board_drops_the_fits_that_ended_first():
    board = FitBoard()
    begin(board, "runs")
    for number in range(MOST_FITS + 5):
        begin(board, str(number))
        board.take({"fit": str(number), "kind": "end", "outcome": "converged"})
    assert len(board.fits) == MOST_FITS
    assert "runs" in board.fits
    assert str(MOST_FITS + 4) in board.fits


def test_a_board_keeps_few_rates_and_knows_no_strangers():
    board = FitBoard()
    begin(board, "f")
    for seconds in range(2 * MOST_RATES):
        rate = {"seconds": float(seconds), "bytes_per_second": 1.0}
        board.take({"fit": "f", "kind": "moment", **rate})
    assert len(board.fits["f"].rates) <= MOST_RATES
    board.take({"fit": "g", "kind": "moment"})
    assert list(board.fits) == ["f"]


def test_the_fits_of_a_client_that_left_are_over():
    board = FitBoard()
    begin(board, "f", client="mine")
    begin(board, "g", client="other")
    board.client_left("mine")
    assert board.fits["f"].outcome == "its client is gone"
    assert not board.fits["g"].is_over


# Fits on a cluster


def board_of(client):
    """The board of a cluster, once its scheduler has taken all messages."""

    async def flushed():
        from nlsq_dask.engines.dask.board_link import _links

        async with _links[client].lock:
            pass

    client.sync(flushed)

    def copied(dask_scheduler):
        return dask_scheduler.plugins[PLUGIN_NAME].board

    return client.run_on_scheduler(copied)


@pytest.mark.cluster
def test_the_board_has_the_numbers_of_the_result(client):
    lazy_fit(client)  # the first fit registers the plugin
    result = lazy_fit(client, pilot=False)
    fit = list(board_of(client).fits.values())[-1]
    *points, last = fit.points
    assert (fit.outcome, fit.message) == ("converged", result.message)
    assert fit.names == result.names
    assert last.params == tuple(result.popt)
    assert last.cost == result.cost
    assert last.errors == tuple(np.sqrt(np.diag(result.pcov)))
    assert [p.cost for p in points] == [h.cost for h in result.history if h.accepted]
    assert [p.distance for p in points] == [h.distance for h in result.history]
    assert points[-1].params == last.params
    np.testing.assert_allclose(points[-1].errors, last.errors, rtol=1e-6)
    assert fit.grid == (20,)
    n_rows = [100 * len(group) for group in fit.groups]
    chi2 = sum(fit.chi2_rows[i] * n for i, n in enumerate(n_rows))
    assert chi2 == pytest.approx(result.chi2, rel=1e-9)
    bars = fit.histogram()
    counts, _ = np.histogram(Y - np.exp(-result.popt[0] / 12 * X), bars.edges)
    assert bars.counts == counts.tolist()
    assert bars.n_shown == bars.n_rows == X.size


@pytest.mark.cluster
def test_the_board_has_the_series_that_are_done(client, tmp_path):
    lazy_fit(client)  # the first fit registers the plugin
    y = da.from_array(np.tile(Y[::40, None], 8), chunks=(-1, 2))
    y = da.where(np.arange(8) == 5, np.nan, y)
    with pytest.warns(ConvergenceWarning):
        maps = fit_each(decays, X[::40], y, [10.0], store=tmp_path / "a.zarr", client=client)
    record = list(board_of(client).fits.values())[-1]
    assert list(record.names) == list(maps.names)
    assert (record.phase, record.is_over, record.success) == ("series", True, False)
    series = record.moment["series"]
    assert (series["done"], series["total"], series["converged"]) == (8, 8, 7 / 8)
    assert record.rates
    assert record.message.startswith("7")


@pytest.mark.cluster
def test_series_that_cannot_be_read_end_on_the_board(client, tmp_path):
    lazy_fit(client)

    def broken(block):
        raise OSError("lost")

    y = da.zeros((50, 4), chunks=(-1, 2)).map_blocks(broken, meta=np.empty((0, 0)))
    with pytest.raises(ReadingError):
        fit_each(decays, X[::40], y, [10.0], store=tmp_path / "b.zarr", client=client, retries=0)
    record = list(board_of(client).fits.values())[-1]
    assert (record.outcome, record.success) == ("failed or interrupted", False)


@pytest.mark.cluster
def test_the_same_bits_come_with_and_without_the_page(client):
    shown = lazy_fit(client, sigma=np.full(X.size, 0.01))
    with dask.config.set({"nlsq_dask.fit-page": False}):
        alone = lazy_fit(client, sigma=np.full(X.size, 0.01))
    assert shown.popt.tobytes() == alone.popt.tobytes()
    assert shown.pcov.tobytes() == alone.pcov.tobytes()
    assert (shown.cost, shown.n_passes) == (alone.cost, alone.n_passes)
    fit = list(board_of(client).fits.values())[-1]
    assert fit.weighted
    counts, _ = np.histogram((Y - np.exp(-shown.popt[0] / 12 * X)) / 0.01, fit.histogram().edges)
    assert fit.histogram().counts == counts.tolist()


@pytest.mark.cluster
def test_several_models_are_several_fits(client):
    x, y = (da.from_array(a, chunks=100) for a in (X, Y))
    models = {"one": decays, "two": decays}
    found = fit_models(models, x, y, {"one": [10.0], "two": [10.0, 1.0]}, client=client)
    one, two = list(board_of(client).fits.values())[-2:]
    assert [one.title, two.title] == ["one", "two"]
    assert two.points[-1].params == tuple(found["two"].popt)
    assert all(point.params for point in one.points)
    for model in (one, two):
        assert model.histogram().n_shown == sum(model.rows.values()) == X.size


@pytest.mark.cluster
def test_fits_of_several_clients_are_on_one_board(client):
    from distributed import Client

    with Client(client.scheduler.address, set_as_default=False) as other:
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lazy_fit, (client, other)))
        board_of(client)
        fits = list(board_of(other).fits.values())[-2:]
    assert {fit.client for fit in fits} == {client.id, other.id}
    assert {fit.points[-1].params for fit in fits} == {tuple(r.popt) for r in results}
    assert all(fit.success for fit in fits)


@pytest.mark.cluster
def test_a_fit_that_fails_is_over_on_the_board(client):
    with pytest.raises(InputError):
        lazy_fit(client, sigma=np.zeros(X.size))
    fits = list(board_of(client).fits.values())
    assert all(fit.is_over for fit in fits)


@pytest.mark.cluster
def test_fits_are_not_told_where_dask_is_told_otherwise(client):
    lazy_fit(client)
    board_of(client)
    n = len(client.get_events(BOARD_TOPIC))
    with dask.config.set({"nlsq_dask.fit-page": False}):
        lazy_fit(client)
    board_of(client)
    assert [m for _, m in client.get_events(BOARD_TOPIC)[n:]] == []


@pytest.mark.cluster
def test_the_records_are_read_over_http(client):
    result = lazy_fit(client)
    board_of(client)
    fits = json.loads(urllib.request.urlopen(address_of(client, "fits.json")).read())
    assert fits[-1]["points"][-1]["params"] == result.popt.tolist()


def address_of(client, page):
    port = client.scheduler_info()["services"]["dashboard"]
    return f"http://127.0.0.1:{port}/{page}"


def test_a_scheduler_that_cannot_have_the_plugin_goes_without():
    """A stand-in for a client: the real way needs a scheduler without this package."""
    from nlsq_dask.engines.dask import board_link

    class Client:
        sent = 0

        async def register_plugin(self, plugin, name):
            raise ModuleNotFoundError("No module named 'nlsq_dask'")

        async def log_event(self, **_):
            self.sent += 1

        @property
        def scheduler(self):
            return self

        @property
        def loop(self):
            return SimpleNamespace(add_callback=lambda f, *a: tasks.append(f(*a)))

    async def all_tasks():
        assert board_link.open_board(client)
        board_link.tell(client, {"fit": "f", "kind": "begin"})
        await asyncio.gather(*tasks)

    tasks, client = [], Client()
    asyncio.run(all_tasks())
    assert board_link.shown_fits(client, "f", 1) == []
    assert client.sent == 0
