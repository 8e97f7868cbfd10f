"""Progress in a real kernel of a notebook: one element, which ends as one line."""

from __future__ import annotations

import re

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

pytestmark = pytest.mark.slow

START = """
import time
import dask.array as da, numpy as np
from nlsq_dask import fit
from nlsq_dask.fitting import faces
x = np.linspace(0, 4, 2000)
def slowly(block):
    time.sleep(pause)
    return block
def model(x, a):
    return a * x
def lazy(**options):
    y = da.from_array(3 * x, chunks=500).map_blocks(slowly, dtype=float, meta=np.empty(0))
    return fit(model, da.from_array(x, chunks=500), y, cache=False, pilot=False, **options)
"""
QUICKLY = "faces.SILENT_SECONDS = 600.0; pause = 0.0; result = lazy()"
ASKED = "pause = 0.3; result = lazy(progress=True)"
LONG = "faces.SILENT_SECONDS = 0.5; pause = 0.3; result = lazy()"
OFF = "pause = 0.3; result = lazy(progress=False)"


class Client(nbclient.NotebookClient):
    """Keeps all states of the elements that are updated in place."""

    states: list = []  # noqa: RUF012 (a trait of the class would be another thing)

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] in ("display_data", "update_display_data"):
            self.states.append((cell_index, msg["msg_type"], msg["content"]["data"]))
        return super().process_message(msg, cell, cell_index)


@pytest.fixture(scope="module")
def executed():
    cells = [nbformat.v4.new_code_cell(text) for text in (START, QUICKLY, ASKED, LONG, OFF)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = Client(notebook, timeout=120)
    client.states = []
    client.execute()
    return notebook, client.states


@pytest.mark.parametrize(("cell", "n_elements"), [(1, 0), (2, 1), (3, 1), (4, 0)])
def test_a_cell_has_one_element_at_most(executed, cell, n_elements):
    notebook, states = executed
    assert len(notebook.cells[cell].outputs) == n_elements
    kinds = [kind for number, kind, _ in states if number == cell]
    assert kinds[:1] == ["display_data"] * n_elements
    assert set(kinds[1:]) <= {"update_display_data"}


@pytest.mark.parametrize("cell", [2, 3])
def test_a_saved_notebook_has_one_final_line(executed, cell):
    (output,) = executed[0].cells[cell].outputs
    assert "\n" not in output.data["text/plain"]
    assert re.match(r"fit converged · \d passes? · ", output.data["text/plain"])
    assert output.data["text/html"] == (
        f'<div class="nlsq-progress">{output.data["text/plain"]}</div>'
    )


def test_the_element_shows_phases_while_the_fit_runs(executed):
    shown = [data["text/html"] for number, _, data in executed[1] if number == 2]
    assert any('<progress value="' in html and 'max="4"' in html for html in shown)
    assert any("pass 1 of about" in html for html in shown)
