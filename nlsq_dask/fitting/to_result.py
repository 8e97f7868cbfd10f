"""Turn the solution of a search into a result, with its warnings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core import statistics
from nlsq_dask.core.constraints import Reduction
from nlsq_dask.core.covariance import covariance, robust_covariance
from nlsq_dask.core.solver_state import Solution
from nlsq_dask.fitting.block_sums import BlockSums, diagnostics
from nlsq_dask.fitting.checkpoint import CheckpointStore
from nlsq_dask.fitting.job import Job
from nlsq_dask.fitting.profiles import profiles
from nlsq_dask.fitting.resume import Preparation
from nlsq_dask.fitting.strategy import Streamed
from nlsq_dask.results.fitted_model import FittedModel
from nlsq_dask.results.record import Start
from nlsq_dask.results.result import FitResult
from nlsq_dask.user_model.loss import HALF_OF_ROWS, Loss

# A fit warns where the standard deviation of the residuals exceeds this many f_scale. The estimate
# of the standard deviation is rough for few rows, and a tenth of outliers raises the estimate by an
# eighth.
TOLERATED_NOISE = 1.25


def with_blocks(result: FitResult, job: Job, found: BlockSums) -> FitResult:
    """The result with a table of the blocks, if their sums are known."""
    sums = found.best or found.latest
    if sums is None or not isinstance(job.strategy, Streamed) or job.n_distinct:
        return result
    at_bound = (result.active_mask != 0).tolist()
    groups = job.strategy.stream.groups
    return replace(result, blocks=diagnostics(groups, sums, result.names, result.perr, at_bound))


def fitted_model(job: Job) -> FittedModel:
    """What the model of a job can compute on the data of the job."""
    makes_profiles = partial(profiles, job)
    return FittedModel(
        job.spec,
        job.data,
        job.device,
        executor=job.executor,
        row_wise=job.row_wise,
        profiles=makes_profiles,
        times=job.data.times,
    )


@dataclass(frozen=True)
class Outcome:
    """The solution of a search, and the passes that the search took."""

    solution: Solution
    preparation: Preparation
    n_passes: int
    n_passes_before: int = 0


def scale_warnings(loss: Loss, solution: Solution) -> list[_errors.FitWarning]:
    """Warnings of a robust loss with a scale so small that most rows are outliers."""
    small, n = HALF_OF_ROWS * loss.f_scale, solution.n_points
    n_small = solution.moments.n_small
    normal = NormalDist(sigma=TOLERATED_NOISE * loss.f_scale)
    if not statistics.fewer_than_chance(n_small, n, 2.0 * normal.cdf(small) - 1.0):
        return []
    noise = statistics.noise_by_small_rows(n_small, n, small)
    return [_errors.f_scale_below_noise(loss.name, loss.f_scale, noise)]


def _warnings(
    solution: Solution, undetermined: tuple[str, ...], determined: bool
) -> Iterator[_errors.FitWarning]:
    """Warnings of a solution: no optimum, no covariance, differences in place of derivatives."""
    status = solution.status
    if not status.success and status is not _errors.Status.UNDETERMINED:
        yield _errors.not_converged(_errors.end_of_fit(status, undetermined))
    if not determined:
        yield _errors.covariance_undetermined(undetermined)
    if solution.n_differenced:
        yield _errors.derivatives_differenced(solution.n_differenced, solution.n_points)


def _of_all_parameters(reduction: Reduction, start: Start) -> Start:
    """A start of the free parameters as a start of all parameters."""
    params = None if start.params is None else reduction.expand(start.params)
    return replace(start, p0=reduction.expand(start.p0), params=params)


def _warn_of(
    job: Job, solution: Solution, problems: Iterable[_errors.FitWarning], model: str | None
) -> None:
    """Give the warnings of a solution, under the name of its model where there are several."""
    for problem in problems:
        _errors.warn_caller(problem if model is None else _errors.of_model(model, problem))
    # Residuals are noise only where the fit arrived, and only for one model: the poorer of several
    # models leaves more than noise.
    if not job.spec.loss.is_linear and solution.status.success and model is None:
        for problem in scale_warnings(job.spec.loss, solution):
            _errors.warn_caller(problem)


def result_of(
    job: Job, outcome: Outcome, store: CheckpointStore | None, model: str | None = None
) -> FitResult:
    """Turn the solution into a result of all parameters, and give the warnings.

    Parameters
    ----------
    job : Job
    outcome : Outcome
    store : CheckpointStore or None
    model : str, optional
        Name of the model in the warnings of several models.
    """
    solution, reduction, spec = outcome.solution, job.reduction, job.spec
    names = np.array(spec.names, object)
    undetermined = tuple(np.array(reduction.names, object)[solution.undetermined].tolist())
    if spec.loss.is_linear:
        pcov, determined = covariance(
            solution.r_factor, solution.cost, solution.n_points, absolute_sigma=job.absolute_sigma
        )
    else:
        pcov, determined = robust_covariance(solution)
    _warn_of(job, solution, _warnings(solution, undetermined, determined), model)
    variance_known = job.absolute_sigma or solution.n_points > solution.params.size
    return FitResult(
        names=spec.names,
        popt=reduction.expand(solution.params),
        pcov=reduction.expand_covariance(pcov),
        cost=solution.cost,
        chi2=solution.chi2,
        n_points=solution.n_points,
        n_skipped=solution.n_skipped,
        n_free=len(reduction.names),
        fixed=tuple(names[reduction.is_fixed].tolist()),
        moments=solution.moments,
        grad=reduction.expand_gradient(solution.gradient),
        optimality=solution.optimality,
        distance_to_optimum_sigma=solution.distance if variance_known else float(np.nan),
        active_mask=reduction.expand_mask(solution.active_mask),
        method=job.options.method,
        loss=spec.loss.name,
        absolute_sigma=job.absolute_sigma,
        r_factor=solution.r_factor,
        nfev=solution.nfev,
        njev=solution.njev,
        nit=solution.nit,
        n_passes=outcome.n_passes,
        n_passes_before=outcome.n_passes_before,
        status=solution.status,
        scipy_status=solution.met,
        undetermined=undetermined,
        strategy=job.plan.strategy,
        workflow=job.plan.workflow,
        budget=job.plan.budget,
        decoded=job.data.decoded,
        tolerances=dict(job.plan.tolerances) | {"stat_tol": job.options.stat_tol},
        structure=spec.structure,
        n_coords=spec.n_coords,
        starts=tuple(_of_all_parameters(reduction, s) for s in outcome.preparation.starts),
        pilot=outcome.preparation.pilot,
        checkpoint=None if store is None else str(store.directory),
        history=solution.history,
        n_differenced=solution.n_differenced,
        sandwich=not spec.loss.is_linear,
        bounds=reduction.expand_bounds(job.lower, job.upper),
        param_units=dict(job.param_units),
        vector_bits=job.vector_bits,
        data_units=job.data.units,
        n_distinct=job.n_distinct,
        times=job.data.times,
        blocks_omitted=tuple(sorted(job.data.omitted)),
        fitted=fitted_model(job),
    )
