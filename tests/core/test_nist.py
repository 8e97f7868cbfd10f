"""The reader of the certified data reads what the files say."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import nist


def test_all_problems():
    problems = nist.load_all()
    sizes = {name: (problem.y.size, problem.params.size) for name, problem in problems.items()}
    assert sizes == {
        "Bennett5": (154, 3),
        "Chwirut2": (54, 3),
        "DanWood": (6, 2),
        "Gauss1": (250, 8),
        "Hahn1": (236, 7),
        "Kirby2": (151, 5),
        "Lanczos1": (24, 6),
        "Lanczos3": (24, 6),
        "MGH17": (33, 5),
        "Misra1a": (14, 2),
        "Nelson": (128, 3),
        "Rat42": (9, 3),
        "Roszman1": (25, 4),
        "Thurber": (37, 7),
    }


def test_one_problem():
    problem = nist.load("Nelson")
    assert problem.starts[0].tolist() == [2.0, 0.0001, -0.01]
    assert problem.starts[1].tolist() == [2.5, 5e-9, -0.05]
    assert problem.params.tolist() == [2.5906836021, 5.6177717026e-9, -5.7701013174e-2]
    assert problem.standard_deviations[2] == 3.9572366543e-3
    assert problem.rss == 3.7976833176
    assert problem.degrees_of_freedom == 125
    assert problem.x.shape == (2, 128)
    assert problem.y[0] == np.log(15.0)


def test_truncated_file_is_refused(tmp_path):
    text = (nist.DATA / "DanWood.dat").read_text()
    (tmp_path / "DanWood.dat").write_text("\n".join(text.splitlines()[:-1]))
    with pytest.raises(ValueError, match="5 rows"):
        nist.load("DanWood", tmp_path)


@pytest.mark.parametrize(
    ("value", "digits"), [(2.0, 11.0), (2.002, 3.0), (5.0, 0.0), (np.nan, 0.0)]
)
def test_digits(value: float, digits: float):
    found = nist.certified_digits(np.array([value]), np.array([2.0]))
    assert found == pytest.approx(digits, abs=0.01)
