"""Trials whose cost is looked at before their derivatives: the same way, with fewer of these."""

from __future__ import annotations

import numpy as np
import pytest

from nlsq_dask.core.minimize import minimize
from nlsq_dask.core.solver_state import SolverOptions
from tests import nist
from tests.core.dense_evaluator import DenseEvaluator, model_functions

PROBLEMS = nist.load_all()


class CostEvaluator(DenseEvaluator):
    """Computes costs by another sum than `evaluate`, so that they differ in their last bits."""

    def costs(self, candidates):
        with np.errstate(all="ignore"):
            return np.array([0.5 * np.sum(self.residuals(c) ** 2) for c in candidates])


def boxes(problem, p0):
    free = np.full(p0.size, np.inf)
    certified = problem.params
    yield -free, free
    # The optimum on a bound, and one far off: reflections and active sets.
    yield np.minimum(p0, certified) - 0.5 * np.abs(p0), np.maximum(p0, certified)


@pytest.mark.parametrize("method", ["trf", "dogbox"])
@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_way_is_the_same_and_rejected_trials_have_no_derivatives(name, near, method):
    problem = PROBLEMS[name]
    p0 = problem.starts[near]
    functions = model_functions(problem.model, problem.x, problem.y)
    options = SolverOptions(method=method, max_nfev=400)
    for lower, upper in boxes(problem, p0):
        fused, first = (CostEvaluator(*functions, problem.y) for _ in range(2))
        expected = minimize(fused, p0, lower, upper, options)
        found = minimize(first, p0, lower, upper, options, costs=first.costs)
        assert found.params.tobytes() == expected.params.tobytes()
        assert found.r_factor.tobytes() == expected.r_factor.tobytes()
        assert (found.nfev, found.njev, found.status) == (
            expected.nfev,
            expected.njev,
            expected.status,
        )
        accepted = [record.accepted for record in found.history]
        assert accepted == [record.accepted for record in expected.history]
        # What costs as much as before within rounding is looked at again, and then rejected.
        assert found.njev <= len(first.points) - found.n_refined
        assert len(fused.points) - len(first.points) >= 0.7 * accepted.count(False) - 1
