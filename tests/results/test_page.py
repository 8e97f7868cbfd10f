"""The report of a result as one file of HTML: what it says, and that it stands alone."""

from __future__ import annotations

import base64
import re
import sys
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest

import nlsq_dask
from nlsq_dask import FitResult
from nlsq_dask.results.page import page
from nlsq_dask.results.provenance import written_arguments

X = np.linspace(0.0, 4.0, 40)
Y = 2.0 * X + 1.0 + 0.1 * np.sin(9.0 * X)


def line(x, a, b):
    """A line <b>, & more."""
    return a * x + b


def fitted(**options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nlsq_dask.ConvergenceWarning)
        return nlsq_dask.fit(line, X, Y, p0=[1, 0], **options)


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "line.html"
    fitted(bounds={"a": (0, 5)}, workflow="quality", n_starts=1).to_html(path)
    return path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_report_stands_alone(report):
    page = Page(report)
    assert report.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?://|<script|<link|@import|url\(", report)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 4
    for attrs in images:
        kind, _, code = attrs["src"].partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(code).startswith(b"\x89PNG")
        assert attrs["alt"]


@pytest.mark.slow
def test_a_report_says_first_that_the_fit_converged(report):
    text = Page(report).text
    sections = ["Parameters", "Statistics", "Pictures", "Plan and course", "Data", "Search"]
    assert re.findall("<h2>(.*?)</h2>", report) == [*sections, "How to make it again", "Versions"]
    assert report.index("The fit converged.") < report.index("<h2>")
    for words in ("passes over all rows", "40 of float64", "numpy " + np.__version__):
        assert words in text


@pytest.mark.slow
def test_a_report_has_the_call_and_the_source_of_the_model(report):
    text = Page(report).text
    assert "def line(x, a, b):" in text
    call = "result = fit( line, x, y, p0=[1, 0], bounds={'a': (0, 5)}, workflow='quality', n_star"
    assert call in text
    assert "A line <b>, & more." in text


def test_a_fit_that_did_not_converge_looks_like_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = fitted(max_nfev=1)
    result.to_html(tmp_path / "short.html")
    report = (tmp_path / "short.html").read_text(encoding="utf-8")
    text = Page(report).text
    assert "The fit DID NOT converge. The maximum number" in text
    assert 'class="verdict bad"' in report
    assert "which is no optimum" in text
    assert "Last value, no optimum" in text
    assert "pip install nlsq_dask[plot]" in text  # without matplotlib: a sentence and no picture
    assert "<img" not in report
    table = result._repr_html_()
    assert "border-left" in table
    assert "<strong>Fit DID NOT converge: The maximum" in table
    assert Page(table).text.count("no optimum") == 2
    assert "border-left" not in fitted()._repr_html_()


def test_a_result_from_a_file_has_a_report_without_its_data(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    fitted().save(tmp_path / "line.json")
    FitResult.load(tmp_path / "line.json").to_html(tmp_path / "line.html")
    text = Page((tmp_path / "line.html").read_text(encoding="utf-8")).text
    assert "Pictures of the data need the result that fit() returned." in text
    assert "How to make it again" not in text


def test_names_of_the_user_are_escaped(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    made = fitted().fitted.provenance
    assert made.seconds > 0
    assert made.planned().rows == 40
    source = "    return a * x + b  # </code><script>\n"
    monkeypatch.setattr("inspect.getsource", lambda _: source)
    written = page(fitted(), "<script>")
    assert "<script" not in written
    assert "&lt;/code&gt;&lt;script&gt;" in written


def test_arguments_are_written_without_data_clients_and_secrets():
    defaults = {"x": None, "y": 1, "p0": None, "sigma": None, "client": None, "loss": "linear"}
    defaults |= {"storage_options": None, "bounds": (0, 1)}
    given = {
        "x": (X, X),
        "y": "s3://key:secret@bucket/y.zarr",
        "p0": np.arange(3),
        "sigma": X,
        "client": object(),
        "loss": "linear",
        "storage_options": {"secret": "word"},
        "bounds": (X, X),
    }
    lines = written_arguments(given, defaults)
    assert lines[0] == "x"
    assert lines[1].startswith("'s3://")
    assert "secret" not in lines[1]
    assert lines[2:4] == ("p0=[0, 1, 2]", "sigma=sigma")
    assert lines[4].startswith("bounds=(array(")
    assert len(lines) == 5
