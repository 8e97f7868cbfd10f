"""One full pass of the kernel with a robust loss, against the same pass with linear loss.

Measured, in ns of processor time a row, on a staged buffer of 2**18 rows, one thread, float64, for
two models, each loss, without and with the products of the scores that the last pass of a fit asks
for. The two passes take turns, ``ratio`` is the median of the ratios of neighbours. ``f_scale`` is
the noise, so that some rows lie on either side of it.

Bar: 1.6 without scores.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np

from benchmarks.common import Row, arguments, in_fresh_process, interleave, judge, ratio, report
from benchmarks.problems import EXPONENTIAL, GAUSSIANS, Problem
from nlsq_dask.io.stage import STAGE_ROWS, Block, Stage
from nlsq_dask.kernels.sums import block_kernel
from nlsq_dask.kernels.tiles import Rows
from nlsq_dask.user_model.loss import LINEAR, Loss
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.signature import parameter_names

LOSSES = ("soft_l1", "huber", "cauchy", "arctan")
BAR = 1.6


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, rows=STAGE_ROWS, repeat=100)
    options = parser.parse_args(argv)
    rows = [
        row
        for problem in (EXPONENTIAL, GAUSSIANS)
        # XLA makes its threads when it first runs: one core for it needs a process of its own.
        for row in in_fresh_process(measure, problem, options.rows, options.repeat, cores=1)
    ]
    return report("robust_pass: ns a row of one pass", rows, options.json)


def measure(problem: Problem, n: int, repeat: int) -> list[Row]:
    """Time all losses for one model.

    Parameters
    ----------
    problem : Problem
    n : int
        Rows of the buffer, a power of two.
    repeat : int
        Turns.
    """
    model = problem.model(jnp)
    spec = prepare_model(model, parameter_names(model))
    params, basis = np.array(problem.truth), np.eye(len(problem.truth))
    stage = Stage(1, weighted=False, capacity=n)
    x, y = problem.data(n)
    stage.fill(Block(y, (x,)), 0)
    rows = Rows(stage.coords, stage.y, None, n)
    losses = {"linear": LINEAR} | {name: Loss(name, problem.noise) for name in LOSSES}
    kernels = {name: block_kernel(replace(spec, loss=loss), "cpu") for name, loss in losses.items()}
    lines = []
    for name in LOSSES:
        for scores in (False, True):
            contestants = {
                "linear": partial(kernels["linear"], params, basis, rows),
                "robust": partial(kernels[name], params, basis, rows, scores=scores),
            }
            seconds = interleave(contestants, repeat, time.process_time)
            times = {who: float(np.median(of)) / n * 1e9 for who, of in seconds.items()}
            found = ratio(seconds["robust"], seconds["linear"])
            judged = {} if scores else judge(found, at_most=BAR)
            line = {"model": problem.label, "loss": name, "scores": "yes" if scores else "no"}
            lines.append(line | times | {"ratio": found} | judged)
    return lines


if __name__ == "__main__":
    main()
