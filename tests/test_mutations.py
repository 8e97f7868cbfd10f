"""The changes of the mutation check still fit the code that they break."""

from __future__ import annotations

import pytest

from tests.mutations import MUTATIONS, PACKAGE, ROOT, files_of, place_of


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_text_of_a_mutation_stands_once_in_the_package(mutation):
    assert place_of(mutation, ROOT / PACKAGE).is_file()
    assert mutation.new not in ("", mutation.old)
    assert files_of(mutation, ROOT / "tests")
