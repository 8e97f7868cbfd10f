"""The page of Dask's dashboard that shows fits: its models, and in a real browser."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import time

import dask.array as da
import numpy as np
import pytest

from nlsq_dask import fit
from nlsq_dask.core.float_bins import FloatBins
from nlsq_dask.engines.dask.fit_board import MOST_FITS, FitBoard, Histogram
from tests.support.problems import decays

pytest.importorskip("bokeh", reason="bokeh is not installed")
fit_page = pytest.importorskip("nlsq_dask.engines.dask.fit_page")
Plot = pytest.importorskip("bokeh.models").Plot

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def board():
    return FitBoard()


def told(board, fit="f", points=(), **known):
    names = {"title": "decay <x>", "names": ["a", "b"], "began": 0.0, "client": "c"}
    board.take({"fit": fit, "kind": "begin", **names, **known})
    for number, cost in enumerate(points, 1):
        point = {"number": number, "cost": cost, "distance": 1.0 / number}
        board.take(
            {
                "fit": fit,
                "kind": "moment",
                "phase": "pass",
                "number": number,
                "passes": [2, 4],
                "blocks": [3, 9],
                "seconds": float(number),
                "bytes_per_second": 2e6,
                "fit_left": [1.0, None],
                "new_points": [point | {"params": [cost, 2.0], "errors": [0.5, math.inf]}],
            }
        )


def data_of(page, name):
    return {s.name: s.data for s in page.root.select({"type": fit_page.ColumnDataSource})}[name]


@pytest.mark.slow
def test_the_page_shows_the_newest_fit_and_a_table_of_all(board):
    told(board, "old", [9.0])
    told(board, "new", [4.0, 3.0, -0.0])
    page = fit_page.Page(board)
    page.update()
    (table,) = page.root.select({"name": "fits"})
    assert table.text.count("<tr>") == 3
    assert "decay &lt;x&gt;" in table.text
    assert "pass 3 of about 2–4 · 3/9 blocks" in table.text
    assert "<td>1–?</td>" in table.text
    points = data_of(page, "points")
    assert points["number"] == [1, 2, 3]
    assert points["cost"][:2] == [4.0, 3.0]
    assert math.isnan(points["cost"][2])  # an exact fit has no logarithm
    assert data_of(page, "parameter-0")["upper"][:2] == [4.5, 3.5]
    assert data_of(page, "parameter-1")["upper"] == [2.0] * 3  # an infinite error has no bar
    assert data_of(page, "rates") == {"seconds": [1.0, 2.0, 3.0], "rate": [2.0] * 3}


def test_a_line_of_many_series_tells_how_many_are_done_and_have_converged(board):
    told(board)
    series = {"done": 3000, "total": 12000, "per_second": 1500.0, "converged": 0.9876, "left": 6.0}
    moment = {"phase": "series", "number": 0, "series": series, "fit_left": [6.0, 6.0]}
    board.take({"fit": "f", "kind": "moment", "seconds": 2.0, "bytes_per_second": 3e6, **moment})
    line = fit_page.row_of(board.fits["f"])
    assert line["state"] == "series · 3,000/12,000 · 98.8 % converged · 1,500 series/s"
    assert (line["left"], line["rate"], line["number"]) == ("6", "3", "")
    board.take({"fit": "f", "kind": "end", "outcome": "converged"})
    assert fit_page.row_of(board.fits["f"])["state"] == "converged"


@pytest.mark.slow
def test_a_fit_that_is_over_stays_and_another_can_be_chosen(board):
    told(board, "old", [9.0])
    board.take({"fit": "old", "kind": "end", "outcome": "converged", "message": "it is"})
    told(board, "new", [4.0])
    page = fit_page.Page(board)
    page.update()
    assert data_of(page, "points")["cost"] == [4.0]
    (choice,) = page.root.select({"type": fit_page.Select})
    choice.value = "old"
    assert data_of(page, "points")["cost"] == [9.0]
    told(board, "newer", [1.0])
    page.update()
    assert data_of(page, "points")["cost"] == [9.0]
    (title,) = page.root.select({"name": "title"})
    assert "converged: it is" in title.text


@pytest.mark.slow
def test_a_chosen_fit_that_is_dropped_gives_way_to_the_newest(board):
    told(board, "old", [9.0])
    page = fit_page.Page(board)
    page.update()
    (choice,) = page.root.select({"type": fit_page.Select})
    choice.value = "old"
    for number in range(MOST_FITS + 1):
        told(board, str(number), [float(number)])
    page.update()
    assert data_of(page, "points")["cost"] == [float(MOST_FITS)]


@pytest.mark.parametrize("grid", [[6], [2, 3], [400]])
def test_the_map_has_each_block_once(board, grid):
    n = math.prod(grid)
    groups = [[2 * i, 2 * i + 1] for i in range(n // 2)]
    told(board, grid=grid, groups=groups)
    told_of = {"chi2_rows": list(range(n // 2)), "rows": [1] * (n // 2)}
    board.take({"fit": "f", "kind": "groups", "first": 0, **told_of})
    cells = fit_page.map_of(board.fits["f"])
    assert cells["block"] == list(range(n))
    assert cells["chi2_row"] == [i // 2 for i in range(n)]
    assert len(set(zip(cells["x"], cells["y"], strict=True))) == n
    if len(grid) == 2:
        assert (max(cells["x"]), max(cells["y"])) == (2, 1)


def of_group(group, values):
    counts = FloatBins.of(np.array(values)).as_bytes()
    return {"fit": "f", "kind": "residuals", "group": group, **counts}


@pytest.mark.slow
def test_residuals_are_drawn_if_they_are_told(board):
    told(board, points=[1.0], weighted=True)
    page = fit_page.Page(board)
    page.update()
    (plot,) = [p for p in page.root.select({"type": Plot}) if p.title.text.startswith("Residuals")]
    assert not plot.visible
    values = np.random.default_rng(2).normal(0, 3, 400)
    board.take(of_group(0, [5.0, 6.0]))
    page.update()
    assert plot.title.text == "Residuals of 2 rows, last pass"
    board.take(of_group(0, values[:200]))  # of the next pass
    board.take(of_group(7, values[200:]))
    groups = {"first": 0, "chi2_rows": [9.0] * 8, "rows": [400] * 8}
    board.take({"fit": "f", "kind": "groups", **groups})
    page.update()
    assert plot.visible
    assert plot.title.text == "Residuals of 400 of 3,200 rows, last pass"
    assert plot.xaxis[0].axis_label == "(y − f) / σ"
    bars = data_of(page, "residuals")
    counts, _ = np.histogram(values, [*bars["left"], bars["right"][-1]])
    assert bars["count"] == counts.tolist()


@pytest.mark.parametrize(
    ("found", "title"),
    [
        (Histogram([0.0, 1.0], [9], 9, 9), "Residuals of all 9 rows, last pass"),
        (Histogram([0.0, 1.0], [7], 9, 9), "Residuals of all 9 rows, last pass; 2 beyond"),
        (Histogram([0.0, 1.0], [9], 9, 0), "Residuals of 9 rows, last pass"),
    ],
)
def test_the_title_says_which_rows_are_shown(found, title):
    assert fit_page.title_of(found) == title


@pytest.mark.slow
def test_many_parameters_are_drawn_in_part(board):
    names = [f"p{j}" for j in range(fit_page.MOST_PARAMETERS + 3)]
    told(board, names=names)
    page = fit_page.Page(board)
    page.update()
    (below,) = page.root.select({"name": "parameters"})
    assert below.children[-1].text == "and 3 more parameters"


# In a browser

MODEL = "Bokeh.documents[0].get_model_by_name"

SCHEDULER = [
    "scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0",
    "--preload", "nlsq_dask.engines.dask.fit_plugin",
]  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path):
    """A client of a scheduler in another process, which has the page from its start."""
    from distributed import Client

    file = tmp_path / "scheduler.json"
    dask_command = [sys.executable, "-m", "dask"]
    scheduler = subprocess.Popen([*dask_command, *SCHEDULER, "--scheduler-file", str(file)])
    worker = subprocess.Popen(
        [*dask_command, "worker", "--nthreads", "1", "--scheduler-file", str(file)]
    )
    try:
        for _ in range(600):
            if file.exists():
                break
            time.sleep(0.1)
        with Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(1, timeout=120)
            yield client
    finally:
        worker.terminate()
        scheduler.terminate()
        worker.wait()
        scheduler.wait()


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_shows_the_numbers_of_the_result(elsewhere):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    x = np.linspace(0, 4, 2000)
    y = np.exp(-1.3 * x) + np.random.default_rng(3).normal(0, 0.01, x.size)
    lazy = (da.from_array(a, chunks=100) for a in (x, y))
    port = elsewhere.scheduler_info()["services"]["dashboard"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/status")
        page.get_by_role("link", name="Fits").click()
        page.get_by_text("No fit has run on this cluster yet").wait_for()
        result = fit(decays, *lazy, [10.0], client=elsewhere, pilot=False)
        page.get_by_text(f"converged: {result.message}").wait_for()
        page.get_by_role("cell", name=f"{result.cost:.6g}").wait_for()
        points = page.evaluate(f"{MODEL}('points').data")
        shown = page.evaluate(f"{MODEL}('parameter-0').data")
        title = f"{MODEL}('histogram').title.text"
        page.wait_for_function(f"{title} == 'Residuals of all 2,000 rows, last pass'")
        bars = page.evaluate(f"{MODEL}('residuals').data")
        browser.close()
    assert list(points["cost"])[-1] == result.cost
    assert list(shown["value"])[-1] == result.popt[0]
    error = (shown["upper"][-1] - shown["lower"][-1]) / 2
    assert error == pytest.approx(float(result.pcov[0, 0]) ** 0.5)
    residuals = y - np.exp(-result.popt[0] / 12 * x)
    counts, _ = np.histogram(residuals, [*bars["left"], list(bars["right"])[-1]])
    assert list(bars["count"]) == counts.tolist()
    assert counts.sum() == x.size
