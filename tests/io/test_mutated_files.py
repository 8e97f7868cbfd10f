"""Many damaged and hostile files: each ends as documented."""

from __future__ import annotations

import pytest

from benchmarks import fuzz


@pytest.mark.slow
def test_mutated_files_end_as_documented(capsys):
    checkpoints, ledgers, results = fuzz.main(["files", "--count", "75", "--seed", "1"])
    assert capsys.readouterr().err == ""
    for row in (checkpoints, ledgers, results):
        assert row["files"] == 25
        assert row["undocumented"] == 0
        assert row["loaded"] > 0
    assert checkpoints["refused"] > 0
    assert results["refused"] > 0
    assert checkpoints["passed over"] > 0
    assert ledgers["passed over"] > 0
