"""The spans of a fit, by which Dask's pages of performance and its API tell fits and passes apart.

``distributed.span`` makes a new span at each use. All tasks of a pass have one span here, and all
passes of a fit are in the span of the fit, so the annotation is written as Dask itself writes it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dask.base import annotate, get_annotations

from nlsq_dask.user_model.model_spec import ModelSpec


class Span:
    """The span of one fit.

    Parameters
    ----------
    specs : sequence of ModelSpec
        Its models.
    fit : str
        Identifier of the fit.
    """

    def __init__(self, specs: Sequence[ModelSpec], fit: str) -> None:
        models = ", ".join(spec.label for spec in specs)
        self._name = f"fit of {models}" if models else "look at data"
        self._fit = fit

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Put the tasks that are submitted in the span of a part of the fit, such as a pass."""
        outer: Any = get_annotations().get("span")
        names = (*(outer["name"] if outer else ()), self._name, name)
        ids = (*(outer["ids"] if outer else ()), self._fit, uuid.uuid4().hex)
        with annotate(span={"name": names, "ids": ids}):
            yield
