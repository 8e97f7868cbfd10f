"""The benchmarks run, at sizes that measure nothing, and write what they print."""

from __future__ import annotations

import importlib
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as all_of_them
from benchmarks import evaluations, nist_table, nlsq_reference
from benchmarks.common import interleave, judge, ratio, report

ROOT = Path(__file__).parents[2]
cluster = pytest.mark.cluster
slow = pytest.mark.slow

#: Script, its options, the number of lines it prints, and columns of figures.
RUNS = [
    pytest.param(
        "kernel",
        ["--rows", "4096", "--repeat", "2"],
        2,
        ("kernel", "cost", "jacfwd"),
        id="kernel",
        marks=(slow, pytest.mark.thorough),
    ),
    pytest.param(
        "in_memory",
        ["--rows", "5000", "--repeat", "1"],
        6,
        ("ours", "scipy"),
        id="in_memory",
        marks=slow,
    ),
    pytest.param(
        "small_fit",
        ["--repeat", "2", "--processes", "1"],
        5,
        ("fit",),
        id="small_fit",
        marks=slow,
    ),
    pytest.param(
        "streaming",
        ["--rows", "5000", "--chunk-rows", "1500", "--repeat", "1"],
        6,
        ("pass", "sum", "GB/s"),
        id="streaming",
        marks=(cluster, slow),
    ),
    pytest.param(
        "passes",
        ["--rows", "4e5", "--chunks", "40"],
        4,
        ("passes", "cold", "scipy"),
        id="passes",
        marks=slow,
    ),
    pytest.param(
        "losses",
        ["--rows", "2e4", "--chunks", "40"],
        9,
        ("passes", "ours", "scipy"),
        id="losses",
        marks=slow,
    ),
    pytest.param(
        "robust_pass",
        ["--rows", "4096", "--repeat", "2"],
        16,
        ("linear", "robust", "ratio"),
        id="robust_pass",
    ),
    pytest.param(
        "each",
        ["--series", "200", "--repeat", "1"],
        6,
        (),
        id="each",
        marks=pytest.mark.thorough,
    ),
    pytest.param(
        "each_answers",
        ["--series", "20"],
        7,
        ("converged",),
        id="each_answers",
        marks=pytest.mark.thorough,
    ),
    pytest.param(
        "each_starts",
        ["--series", "20"],
        12,
        ("scipy", "evaluations"),
        id="each_starts",
        marks=pytest.mark.thorough,
    ),
    pytest.param(
        "each_store",
        ["--megabytes", "1", "--repeat", "1", "--no-workers", "--no-frames"],
        3,
        (),
        id="each_store",
        marks=pytest.mark.thorough,
    ),
    pytest.param(
        "each_alone",
        ["--megabytes", "1", "--calls", "2", "--repeat", "1"],
        4,
        (),
        id="each_alone",
        marks=pytest.mark.thorough,
    ),
    pytest.param(
        "each_fuzz",
        ["--count", "64"],
        32,
        (),
        id="each_fuzz",
        marks=pytest.mark.thorough,
    ),
    pytest.param(
        "coverage",
        ["--rows", "200", "--repeats", "2"],
        24,
        ("mean", "least", "most"),
        id="coverage",
        marks=slow,
    ),
    pytest.param(
        "whole_fit",
        ["--rows", "20000", "--chunk-rows", "1500", "--repeat", "1"],
        6,
        ("fit", "passes", "theirs", "ratio"),
        id="whole_fit",
    ),
    pytest.param(
        "cached",
        ["--rows", "20000", "--chunk-rows", "3000", "--repeat", "1"],
        2,
        ("share kept", "kept", "in memory", "same bits"),
        id="cached",
        marks=(cluster, pytest.mark.thorough),
    ),
    pytest.param(
        "pages",
        ["--rows", "20000", "--chunk-rows", "3000", "--repeat", "1"],
        6,
        ("fit", "sum", "faster"),
        id="pages",
        marks=slow,
    ),
    pytest.param(
        "broadcast", ["--rows", "1000", "--repeat", "1"], 2, ("three", "one"), id="broadcast"
    ),
    pytest.param(
        "collapse",
        ["--rows", "5e5", "--repeat", "1"],
        4,
        ("fit", "sum", "passes"),
        id="collapse",
        marks=slow,
    ),
    pytest.param(
        "memory",
        ["--rows", "2e4", "--chunk-rows", "3e3"],
        2,
        ("before", "peak"),
        id="memory",
        marks=slow,
    ),
    pytest.param(
        "budget",
        ["--rows", "2e4", "--limits", "0.1"],
        4,
        ("threshold", "peak"),
        id="budget",
        marks=(slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")),
    ),
    pytest.param(
        "overhead",
        ["--chunks", "40", "--repeat", "1"],
        4,
        ("groups", "blocks", "setup"),
        id="overhead",
        marks=(cluster, slow),
    ),
    pytest.param(
        "object_store",
        ["--rows", "5000", "--chunk-rows", "1500", "--repeat", "1"],
        4,
        ("disk", "obstore", "fsspec", "read"),
        id="object_store",
        marks=(slow, pytest.mark.skipif(find_spec("moto") is None, reason="moto serves S3")),
    ),
    pytest.param(
        "planning",
        ["--chunks", "200", "--repeat", "1"],
        3,
        ("as passed", "elementwise", "cut anew"),
        id="planning",
        marks=slow,
    ),
    pytest.param(
        "small_chunks",
        ["--chunks", "2000", "--repeat", "1"],
        4,
        ("small", "planning"),
        id="small_chunks",
        marks=(cluster, slow),
    ),
    pytest.param(
        "scaling",
        ["--groups", "20", "--most-workers", "4", "--repeat", "1"],
        1,
        ("tasks", "KB to client", "scheduler ms", "in flight"),
        id="scaling",
        marks=(cluster, slow),
    ),
    pytest.param(
        "nist_table", ["--problems", "Misra1a", "Nelson"], 4, (), id="nist_table", marks=slow
    ),
    pytest.param(
        "mgh", ["--problems", "Beale"], 6, ("fits", "least", "evaluations"), id="mgh", marks=slow
    ),
    pytest.param(
        "units", ["--fits", "8", "--by", "tier"], 3, ("fits", "evaluations"), id="units", marks=slow
    ),
    pytest.param(
        "evaluations",
        ["--groups", "families", "--starts", "1"],
        2,
        ("fits", "success", "evaluations"),
        id="evaluations",
        marks=slow,
    ),
    pytest.param(
        "gpu",
        ["--cpu", "--rows", "1e4", "--repeat", "1"],
        4,
        ("resident ns/row", "share"),
        id="gpu",
        marks=slow,
    ),
    pytest.param(
        "fuzz",
        ["files", "--count", "60"],
        3,
        ("files", "loaded"),
        id="fuzz-files",
        marks=slow,
    ),
    pytest.param(
        "fuzz",
        ["calls", "--count", "40"],
        1,
        ("calls", "ran", "refused"),
        id="fuzz-calls",
        marks=slow,
    ),
    pytest.param(
        "soak",
        ["--count", "14", "--warm", "14"],
        4,
        (),
        id="soak",
        marks=(cluster, slow, pytest.mark.thorough),
    ),
    pytest.param(
        "faults",
        ["--workers", "3", "--clients", "0"],
        3,
        ("kills", "equal"),
        id="faults",
        marks=(cluster, slow, pytest.mark.thorough),
    ),
    pytest.param(
        "nist_table",
        ["--problems", "Rat42", "--replicate", "20"],
        2,
        (),
        id="nist_table-replicated",
        marks=(cluster, slow),
    ),
]


@pytest.mark.every(12)
@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "lines", "figures"), RUNS)
def test_runs_and_reports(name, options, lines, figures, tmp_path, capsys):
    path = tmp_path / "figures.json"
    rows = importlib.import_module(f"benchmarks.{name}").main([*options, "--json", str(path)])
    assert len(rows) == lines
    for row in rows:
        assert all(np.isfinite(row[figure]) and row[figure] > 0 for figure in figures)
    written = json.loads(path.read_text())
    assert written["rows"] == rows
    assert written["machine"]["jax"]
    printed = capsys.readouterr().out.splitlines()
    # An empty line, the title, the columns' names, the lines.
    assert len(printed) == 3 + lines
    assert all(figure in printed[2] for figure in figures)


def test_nist_table_judges_by_the_worst_strategy():
    good, bad = nist_table.Digits(6.0, 5.0), nist_table.Digits(11.0, 4.9)
    assert nist_table.verdict({"scipy": good, "streaming": good}) == {"met": "yes"}
    assert nist_table.verdict({"scipy": good, "streaming": good, "chunked": bad}) == {"met": "NO"}
    assert nist_table.verdict({"scipy": bad, "streaming": bad})["met"] not in ("yes", "NO")


@pytest.mark.thorough
@slow
def test_nlsq_is_run_in_its_own_environment(tmp_path, monkeypatch):
    # In its place a package of the same name and interface, which fits by SciPy.
    (tmp_path / "nlsq.py").write_text(
        "import jax, numpy\n"
        "from scipy.optimize import curve_fit\n"
        "__version__ = 'of SciPy'\n"
        "jax.config.update('jax_enable_x64', True)\n"
        "class CurveFit:\n"
        "    def curve_fit(self, f, x, y, p0, **tolerances):\n"
        "        return curve_fit(lambda *a: numpy.asarray(f(*a)), x, y, p0, **tolerances)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = ["--environment", sys.executable, "--rows", "20000", "--repeat", "1"]
    rows = nlsq_reference.main(options)
    assert [row["rows"] for row in rows] == [20000, 2000, 100]
    for row in rows:
        assert row["NLSQ of SciPy, cold"] > 0
        assert row["apart"] < 0.01


@pytest.mark.thorough
@slow
def test_evaluations_of_two_versions_are_compared_where_both_end_in_the_same_minimum(
    tmp_path, capsys
):
    options = ["--groups", "families", "--starts", "1"]
    saved = tmp_path / "before.json"
    evaluations.main([*options, "--save", str(saved)])
    before = json.loads(saved.read_text())
    moved, _, slower, *_ = before  # "trf" and "lm" take turns
    before[moved]["cost"] *= 2
    before[slower]["evaluations"] += 5
    saved.write_text(json.dumps(before))
    changed, same = evaluations.main([*options, "--compare", str(saved)])
    assert (changed["moved"], same["moved"]) == (1, 0)
    assert changed["before"] == changed["evaluations"] + 5
    assert (changed["met"], same["ratio"]) == ("yes", 1.0)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_contestants_take_turns():
    calls = []
    seconds = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4  # the first turn is not measured
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_ratio_is_of_calls_made_together():
    # The median of the ratios 1, 2, 3; the ratio of the medians is 3.
    assert ratio(np.array([10.0, 2.0, 3.0]), np.array([10.0, 1.0, 1.0])) == 2.0


def test_bars():
    assert judge(2.6, at_most=2.6)["met"] == "yes"
    assert judge(2.7, at_most=2.6)["met"] == "NO"
    assert judge(6.0, at_least=6)["met"] == "yes"
    assert judge(float("nan"), at_least=6)["met"] == "NO"
    assert judge(float("nan"), at_most=6)["met"] == "NO"


def test_table_has_all_columns_of_all_lines(capsys):
    report("title", [{"a": 1, "b": 0.123456}, {"a": 2, "c": "x"}])
    title, names, first, second = capsys.readouterr().out.strip().splitlines()
    assert title == "title"
    assert names.split() == ["a", "b", "c"]
    assert first.split() == ["1", "0.123"]
    assert second.split() == ["2", "x"]


def test_every_script_is_in_the_readme_and_in_the_full_run():
    scripts = {
        path.stem
        for path in (ROOT / "benchmarks").glob("*.py")
        if "def main(argv" in path.read_text(encoding="utf-8")
    }
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)\.py`", readme, re.MULTILINE)) == scripts
    assert set(all_of_them.RUNS) == scripts - {"nlsq_reference", "each_real"}
