"""The classes of the parts of a trace of JAX.

They are those of ``jax.extend.core``. The import of ``jax.extend`` loads Pallas, which takes a
tenth of the time of the first fit of a process. A trace of a constant has a part of each class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax

__all__ = ["ClosedJaxpr", "Jaxpr", "Literal"]

if TYPE_CHECKING:
    from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
else:
    _constant = jax.make_jaxpr(lambda: 1.0)()
    ClosedJaxpr = type(_constant)
    Jaxpr = type(_constant.jaxpr)
    Literal = type(_constant.jaxpr.outvars[0])
