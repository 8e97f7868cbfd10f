"""What every engine keeps to. An engine is finished when its subclass of this suite passes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask.core.questions import CostsAt, SumsAt
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.model_spec import ModelSpec
from tests.support.problems import (
    Problem,
    exact_sums,
    plain_problem,
    problems,
    with_params,
)

seeds = st.integers(0, 2**32 - 1)


def power_law(x, a, b):
    """NaN for rows with x < b, and an infinite value for x = b where a is negative."""
    return (x - b) ** a


def overflowing(x, a, b):
    return b * jnp.exp(a * x)


class EngineConformance:
    """A subclass says how to make its engine, and how many examples it can afford."""

    problems: ClassVar[st.SearchStrategy[Problem]] = problems()
    #: Rows that fill several staging buffers.
    many_rows: ClassVar[int] = 700_001

    def engine(
        self, spec: ModelSpec, x: Any, y: Any, sigma: Any = None, layout: int = 0
    ) -> AbstractContextManager[Any]:
        """An engine of NumPy data, laid out in chunks that follow from a number."""
        raise NotImplementedError

    @pytest.mark.slow
    @given(data=st.data(), layout=seeds)
    def test_sums_equal_dense_numpy(self, data, layout):
        self.check_sums(data.draw(self.problems), layout)

    def check_sums(self, problem, layout):
        with self.engine(problem.spec, problem.x, problem.y, problem.sigma, layout) as engine:
            sums = engine.ask(SumsAt(problem.params, problem.basis))

        exact_sums(problem).assert_equal(sums, problem.y.size)

    @pytest.mark.slow
    @pytest.mark.parametrize("columns", [1, 2, 5])
    def test_a_basis_of_any_width(self, columns):
        problem = plain_problem(p=3)
        basis = np.random.default_rng(columns).normal(size=(3, columns))
        with self.engine(problem.spec, problem.x, problem.y, problem.sigma) as engine:
            plain = engine.ask(SumsAt(problem.params, np.eye(3)))
            sums = engine.ask(SumsAt(problem.params, basis))

        np.testing.assert_allclose(sums.gram, basis.T @ plain.gram @ basis, rtol=1e-11)
        np.testing.assert_allclose(sums.gradient, basis.T @ plain.gradient, rtol=1e-10)
        assert sums.chi2 == pytest.approx(plain.chi2, rel=1e-14)

    @pytest.mark.slow
    def test_same_parameters_give_the_same_bits(self):
        problem = plain_problem(self.many_rows)
        elsewhere = with_params(problem, problem.params * 1.3)
        with self.engine(problem.spec, problem.x, problem.y, problem.sigma) as engine:
            first = engine.ask(SumsAt(problem.params, problem.basis))
            other = engine.ask(SumsAt(elsewhere.params, problem.basis))
            again = engine.ask(SumsAt(problem.params, problem.basis))
        with self.engine(problem.spec, problem.x, problem.y, problem.sigma) as second_engine:
            anew = second_engine.ask(SumsAt(problem.params, problem.basis))

        assert other.chi2 != first.chi2
        for sums in (again, anew):
            assert sums.gram.tobytes() == first.gram.tobytes()
            assert sums.gradient.tobytes() == first.gradient.tobytes()
            assert sums.chi2 == first.chi2

    @pytest.mark.slow
    def test_many_rows_in_any_chunks(self):
        problem = plain_problem(self.many_rows, p=2)
        exact = exact_sums(problem)
        for layout in range(3):
            with self.engine(problem.spec, problem.x, problem.y, problem.sigma, layout) as engine:
                sums = engine.ask(SumsAt(problem.params, problem.basis))
            exact.assert_equal(sums, problem.y.size, rtol=1e-13)

    @pytest.mark.slow
    def test_passes_are_counted(self):
        problem = plain_problem()
        with self.engine(problem.spec, problem.x, problem.y) as engine:
            assert engine.n_passes == 0
            for i in range(1, 4):
                engine.ask(SumsAt(problem.params * i, problem.basis))
                assert engine.n_passes == i

    @pytest.mark.parametrize(
        ("model", "params"),
        [
            pytest.param(power_law, [0.5, 3.9999], id="NaN at most rows"),
            pytest.param(power_law, [0.5, 1e-300], id="NaN at one row"),
            pytest.param(overflowing, [1e4, 1.0], id="overflow"),
            pytest.param(overflowing, [1e4, -1.0], id="negative overflow"),
            pytest.param(overflowing, [1.0, np.nan], id="NaN parameter"),
        ],
    )
    def test_non_finite_values_give_a_non_finite_cost(self, model, params):
        problem = plain_problem()
        x = problem.x.copy()
        x[777] = 0.0  # below b = 1e-300, where all other rows are above
        spec = prepare_model(model, 2, "single", 1)
        with self.engine(spec, x, problem.y, problem.sigma) as engine:
            fine = engine.ask(SumsAt(np.array([1.0, 0.0]), np.eye(2)))
            sums = engine.ask(SumsAt(np.array(params), np.eye(2)))
            fine_again = engine.ask(SumsAt(np.array([1.0, 0.0]), np.eye(2)))

        assert np.isfinite(fine.cost)
        assert not np.isfinite(sums.cost)
        assert not np.isfinite(sums.chi2)
        assert sums.n_points == problem.y.size
        assert fine_again.cost == fine.cost

    @pytest.mark.slow
    def test_costs_of_several_candidates_in_one_pass(self):
        problem = plain_problem(90_000)
        candidates = problem.params * np.linspace(0.5, 2, 7)[:, None]
        with self.engine(problem.spec, problem.x, problem.y, problem.sigma) as engine:
            costs = engine.ask(CostsAt(candidates))
            assert engine.n_passes == 1
            again = engine.ask(CostsAt(candidates))

        expected = [exact_sums(with_params(problem, c)).chi2 / 2 for c in candidates]
        np.testing.assert_allclose(costs, expected, rtol=1e-12)
        assert again.tobytes() == costs.tobytes()

    @pytest.mark.slow
    def test_a_candidate_without_a_finite_cost_harms_no_other(self):
        problem = plain_problem()
        spec = prepare_model(power_law, 2, "single", 1)
        candidates = np.array([[1.0, 0.0], [0.5, 2.0], [np.nan, 0.0], [2.0, 0.0]])
        with self.engine(spec, problem.x, problem.y, problem.sigma) as engine:
            costs = engine.ask(CostsAt(candidates))
        np.testing.assert_array_equal(np.isfinite(costs), [True, False, False, True])

    def test_inputs_are_never_changed(self):
        problem = plain_problem(3000)
        before = [a.copy() for a in problem.arrays]
        for array in problem.arrays:
            array.flags.writeable = False  # a write would raise, a copy would be compared
        params, basis = problem.params.copy(), problem.basis.copy()
        with self.engine(problem.spec, problem.x, problem.y, problem.sigma) as engine:
            engine.ask(SumsAt(params, basis))

        for array, copy in zip(problem.arrays, before, strict=True):
            np.testing.assert_array_equal(array, copy)
        np.testing.assert_array_equal(params, problem.params)
        np.testing.assert_array_equal(basis, problem.basis)

    def test_data_in_other_memory_layouts(self):
        rng = np.random.default_rng(3)
        y = np.asfortranarray(rng.normal(size=(30, 50)))
        x = rng.uniform(0, 4, (50, 60))[::-1, ::2].T  # negative strides, transposed
        sigma = np.lib.stride_tricks.as_strided(np.full(1, 2.0), (30, 50), (0, 0))
        problem = plain_problem(p=2)
        problem = type(problem)(x, y, sigma, problem.params, problem.basis)
        with self.engine(problem.spec, x, y, sigma) as engine:
            sums = engine.ask(SumsAt(problem.params, problem.basis))

        exact_sums(problem).assert_equal(sums, 1500)


class CostlyEngineConformance(EngineConformance):
    """The same for engines that start processes: ten random problems."""

    @pytest.mark.slow
    @settings(max_examples=10)
    @given(data=st.data(), layout=seeds)
    def test_sums_equal_dense_numpy(self, data, layout):
        self.check_sums(data.draw(self.problems), layout)
