"""The first fit of this process after ``import jax``, in parts; a script of ``small_fit``.

Prints seconds as JSON: processor time of the imports of the package, of the first fit and of the
same fit once more, and the time that XLA took to compile so many programs.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.problems import EXPONENTIAL

#: JAX's name of the time that XLA takes to compile.
COMPILED = "/jax/core/compile/backend_compile_duration"


def decay(x: Any, a: Any, b: Any, c: Any) -> Any:
    """The model as a function of a module."""
    return a * jnp.exp(-b * x) + c


def main() -> None:
    """Fit so many rows as the argument says, twice."""
    jax.devices()  # JAX starts its backend at the first use
    compiled: list[float] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event == COMPILED:
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    x, y = EXPONENTIAL.data(int(sys.argv[1]))
    began = time.process_time()
    from nlsq_dask import fit  # its import is measured

    imported = time.process_time()
    fit(decay, x, y, p0=EXPONENTIAL.start)
    fitted = time.process_time()
    fit(decay, x, y, p0=EXPONENTIAL.start)
    parts = {
        "imports": imported - began,
        "fit": fitted - imported,
        "XLA (wall)": sum(compiled),
        "programs": len(compiled),
        "once more": time.process_time() - fitted,
    }
    print(json.dumps(parts))


if __name__ == "__main__":
    main()
