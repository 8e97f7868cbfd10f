"""The command ``nlsq-dask``: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import cloudpickle
import dask
import h5py
import numpy as np
import pytest
import zarr

import nlsq_dask
from nlsq_dask import ClusterError, FitResult, InputError
from nlsq_dask.command import arrays, named_models, values
from nlsq_dask.command.main import main
from nlsq_dask.core.installed import OPTIONAL, REQUIRED
from nlsq_dask.engines.dask import connect
from nlsq_dask.models import Gaussian, Linear

ROOT = Path(__file__).parents[2]
TRUE = {"slope": 2.0, "intercept": -1.0}
MODEL_FILE = """
import numpy as np

scale = 3

def line(x, a, b):
    return a * x + b

def stuck(x, a, b):
    return np.where(x > 1e9, a * b, 0.0)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A directory with data of a line and a file of models, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    rng = np.random.default_rng(5)
    x = np.linspace(0, 4, 60)
    y = TRUE["slope"] * x + TRUE["intercept"] + rng.normal(0, 0.1, x.size)
    np.save("x.npy", x)
    np.save("y.npy", y)
    np.savez("xy.npz", x=x, y=y)
    np.savetxt("xy.csv", np.stack([x, y], 1), delimiter=",", header="x, y", comments="")
    zarr.create_array("y.zarr", data=y, chunks=(20,))
    with h5py.File("xy.h5", "w") as file:
        file["run/x"], file["run/y"] = x, y
    Path("own.py").write_text(MODEL_FILE)
    return tmp_path


def run(*words):
    return main([str(word) for word in words])


def error_of(capsys):
    return capsys.readouterr().err


def test_a_fit_is_that_of_the_function(folder, capsys):
    code = run("fit", "Linear", "--x", "x.npy", "--y", "y.npy", "--out", "line.json")
    assert code == 0
    printed = capsys.readouterr().out
    direct = nlsq_dask.fit(Linear(), np.load("x.npy"), np.load("y.npy"))
    saved = FitResult.load("line.json")
    assert saved.popt.tobytes() == direct.popt.tobytes()
    assert printed.strip() == direct.summary().strip()
    assert run("show", "line.json") == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ("xy.npz::x", "xy.npz::y"),
        ("xy.csv::x", "xy.csv::y"),
        ("xy.h5::run/x", "xy.h5::/run/y"),
        ("x.npy", "y.zarr"),
    ],
)
def test_arrays_of_every_kind_of_file(folder, capsys, x, y):
    words = ("--sigma", 0.1, "--absolute-sigma", "--out", "line.json")
    assert run("fit", "Linear", "--x", x, "--y", y, *words) == 0
    assert "sigma are absolute" in capsys.readouterr().out
    expected = np.polyfit(np.load("x.npy"), np.load("y.npy"), 1)
    np.testing.assert_allclose(FitResult.load("line.json").popt, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["own.py:line", "own:line"])
def test_a_model_of_a_file_with_every_kind_of_argument(folder, capsys, name):
    words = ("--p0", "a=1,b=0", "--bounds", "a=0:,b=-5:5", "--fixed", "b=-1", "--max-nfev", 50)
    assert run("fit", name, "--x", "x.npy", "--y", "y.npy", *words, "--out", "own.json") == 0
    result = FitResult.load("own.json")
    assert result.names == ("a", "b")
    assert result.fixed == ("b",)
    assert result.bounds.tolist() == [[0, np.inf], [-1, -1]] or result.bounds[0, 0] == 0


def test_a_plan(folder, capsys):
    assert run("plan", "Linear", "--x", "x.npy", "--y", "y.zarr", "--p0", "1,1", "--no-time") == 0
    assert capsys.readouterr().out.startswith("Plan of a fit of 2 parameters to 60 rows")


def test_information_on_the_installation(capsys):
    assert run("info") == 0
    text = capsys.readouterr().out
    for words in (f"numpy {np.__version__}", "cpu:0", "free memory", "streaming Dask and Zarr"):
        assert words in " ".join(text.split())
    nlsq_dask.show_versions()
    assert capsys.readouterr().out.splitlines()[:8] == text.splitlines()[:8]


def test_the_listed_libraries_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {line.split(">=")[0].split("[")[0] for line in project["dependencies"]}
    assert set(REQUIRED) == needed
    assert not set(OPTIONAL) & needed


def test_a_fit_that_does_not_converge_has_a_status_of_its_own(folder, capsys):
    words = ("--p0", "a=1,b=0", "--max-nfev", 1, "--out", "short.json")
    assert run("fit", "own.py:line", "--x", "x.npy", "--y", "y.npy", *words) == 1
    said = capsys.readouterr()
    assert said.out.startswith("Fit DID NOT converge")
    assert said.err.startswith("nlsq-dask: warning: The maximum number")
    assert ".py" not in said.err  # no line of code
    assert run("show", "short.json", "--report", "short.html") == 1
    assert "DID NOT converge" in Path("short.html").read_text(encoding="utf-8")


DATA = ("--x", "x.npy", "--y", "y.npy")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fit", "Gauss", *DATA), "no model 'Gauss': the models of nlsq_dask.models are"),
        (("fit", "own.py:parabola", *DATA), "functions line and stuck"),
        (("fit", "nowhere:line", *DATA), "cannot be imported (No module named 'nowhere')"),
        (("fit", "missing.py:line", *DATA), "cannot be imported"),
        (("fit", "Linear", "--x", "xy.npz", "--y", "y.npy"), "xy.npz::x"),
        (("fit", "Linear", "--x", "xy.csv::t", "--y", "y.npy"), "The file has x and y"),
        (("fit", "Linear", "--x", "own.py", "--y", "y.npy"), "there is no Zarr array there"),
        (("fit", "Linear", *DATA, "--p0", "a=1,b"), "--p0 'a=1,b' is no list of numbers"),
        (("fit", "Linear", *DATA, "--bounds", "a=1"), "--bounds 'a=1' is no list of bounds"),
        (("fit", "Linear", *DATA, "--storage-option", "key"), "has no '='"),
        (("fit", "Linear", *DATA, "--loss", "l1"), "loss = 'l1' is unknown"),
        (("fit", "Linear", *DATA, "--resume"), "resume"),
        (("fit", "Linear", *DATA, "--out", "no/where.json"), "no directory no"),
        (("fit", "Linear", *DATA, "--report", "."), "it is a directory"),
        (("show", "x.npy"), "no result of a fit"),
    ],
)
def test_what_cannot_be_used_is_named_and_has_status_2(folder, capsys, words, said):
    assert run(*words) == 2
    text = error_of(capsys)
    assert text.startswith("nlsq-dask: error: ")
    assert said in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    "words", [(), ("fit",), ("fit", "Linear", "--x", "x.npy"), ("fit", "L", *DATA, "--wrong", "1")]
)
def test_words_that_are_no_command_have_status_2(words, capsys):
    with pytest.raises(SystemExit) as ended:
        run(*words)
    assert ended.value.code == 2
    assert "usage: nlsq-dask" in error_of(capsys)


@pytest.mark.parametrize("command", [(), ("info",), ("plan",), ("fit",), ("show",)])
def test_help_has_examples_and_statuses(command, capsys):
    with pytest.raises(SystemExit) as ended:
        run(*command, "--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    if command in ((), ("fit",)):
        assert "examples:\n  nlsq-dask" in text
        assert "exit status:\n  0 " in text


def test_files_that_are_not_there_have_status_3(folder, capsys):
    assert run("fit", "Linear", "--x", "none.npy", "--y", "y.npy") == 3
    assert "none.npy" in error_of(capsys)
    assert run("show", "none.json") == 3


def test_an_interrupted_fit_has_the_status_of_the_shell(folder, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("nlsq_dask.command.actions.fit", interrupted)
    assert run("fit", "Linear", *DATA) == 130
    assert error_of(capsys) == "nlsq-dask: error: interrupted\n"


def test_a_checkpoint_is_picked_up(folder, capsys):
    words = ("fit", "Linear", *DATA, "--checkpoint", "state", "--out", "line.json")
    assert run(*words) == 0
    assert run(*words, "--resume") == 0
    assert FitResult.load("line.json").n_passes_before > 0


def test_damaged_files_are_named(folder, capsys):
    Path("broken.npy").write_bytes(b"\x93NUMPY\x01\x00 this is no header")
    assert run("fit", "Linear", "--x", "broken.npy", "--y", "y.npy") == 2
    assert "broken.npy cannot be read as its ending says" in error_of(capsys)


def test_without_h5py_the_error_says_how_to_install_it(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert run("fit", "Linear", "--x", "xy.h5::run/x", "--y", "y.npy") == 2
    assert "pip install h5py" in error_of(capsys)


def test_several_coordinates_are_a_tuple(folder):
    first, second = arrays.coordinates_of(["x.npy", "xy.npz::x"])
    np.testing.assert_array_equal(first, second)
    assert arrays.coordinates_of(["s3://bucket/a.zarr/x"]) == "s3://bucket/a.zarr/x"


def test_models_by_name():
    assert named_models.named_model("Gaussian + Linear") == Gaussian() + Linear()
    with pytest.raises(InputError, match=r"module:function"):
        named_models.named_model("Sum")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2e3,-4", [1.0, 2000.0, -4.0]),
        ("a=1, b = 2.5", {"a": 1.0, "b": 2.5}),
        ("a=inf", {"a": np.inf}),
    ],
)
def test_numbers(text, expected):
    assert values.numbers("--p0", text) == expected


@pytest.mark.parametrize("text", ["", "a=", "=1", "a=1,a=2", "1,b=2", "one"])
def test_what_is_no_list_of_numbers(text):
    with pytest.raises(InputError, match="--p0"):
        values.numbers("--p0", text)


def test_bounds():
    found = values.bounds("a=0:10, b=:5,c=-1e3:,d=:")
    inf = np.inf
    assert found == {"a": (0, 10), "b": (-inf, 5), "c": (-1e3, inf), "d": (-inf, inf)}
    for text in ("a", "a=1:2:3", "a=x:1", "=0:1", "a=0:1,a=0:2"):
        with pytest.raises(InputError, match="--bounds"):
            values.bounds(text)


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(connect, "MOST_WAIT", 0.0)
    with dask.config.set({"distributed.comm.timeouts.connect": "100ms"}):
        for address in (str(tmp_path / "nowhere.json"), "tcp://127.0.0.1:1", "nowhere:port"):
            with pytest.raises(ClusterError, match=address), connect.connected(address):
                pass


def test_a_model_of_this_directory_is_sent_with_its_code(folder, monkeypatch):
    sent = cloudpickle.dumps(named_models.named_model("own.py:line"))
    monkeypatch.delitem(sys.modules, "nlsq_dask_model_own")
    Path("own.py").unlink()
    assert cloudpickle.loads(sent)(2.0, 3.0, 1.0) == 7.0


@pytest.mark.cluster
@pytest.mark.thorough
def test_a_fit_on_a_cluster_with_a_model_that_only_this_directory_has(folder, client, capsys):
    words = ("--x", "x.npy", "--y", "y.zarr", "--p0", "a=1,b=0", "--out", "far.json")
    address = client.scheduler.address
    assert run("fit", "own:line", *words, "--scheduler", address) == 0
    assert FitResult.load("far.json").strategy == "streaming"


@pytest.mark.slow
def test_the_command_as_a_process(folder):
    words = ("fit", "own:line", *DATA, "--p0", "a=1,b=0", "--max-nfev", "1")
    command = [sys.executable, "-m", "nlsq_dask.command", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("Fit DID NOT converge")
    assert done.stderr.startswith("nlsq-dask: warning: ")
    assert "Traceback" not in done.stderr


def test_the_command_is_installed_by_its_name():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"nlsq-dask": "nlsq_dask.command.main:main"}
    assert main.__module__ == "nlsq_dask.command.main"
