"""Arguments of the command ``nlsq-dask``, and its help."""

from __future__ import annotations

import argparse

from nlsq_dask import __version__
from nlsq_dask.command import actions
from nlsq_dask.core.goals import OptimizationGoal
from nlsq_dask.core.presets import WORKFLOW_PRESETS
from nlsq_dask.core.solver_state import METHOD_NAMES

PROGRAM = "nlsq-dask"

_ENDS = """\
exit status:
  0    the fit converged (fit, show), or the command did what it was asked
  1    the fit did not converge, or the model raised an error, which is shown with its traceback
  2    an argument, a file or the data cannot be used as they are
  3    data could not be read, an output could not be written, or the cluster failed: fit again,
       with --checkpoint and --resume from where the fit was
  130  interrupted from the keyboard
"""

_EXAMPLES = """\
examples:
  nlsq-dask info
  nlsq-dask plan decay.py:decay --x run.zarr/t --y run.zarr/y --p0 a=1,b=2
  nlsq-dask fit Gaussian+Linear --x wave.npy --y power.npy --out line.json --report line.html
  nlsq-dask show line.json
"""

_EXAMPLES_OF_FIT = """\
examples:
  nlsq-dask fit ExponentialDecay --x run.h5::t --y run.h5::counts
  nlsq-dask fit models.peaks:line --x table.csv::energy --y table.csv::rate --sigma 0.5 --p0 1,2,3
  nlsq-dask fit decay.py:decay --x s3://bucket/run.zarr/t --y s3://bucket/run.zarr/y \\
      --p0 a=1,b=2 --bounds a=0:,b=0:10 --workflow hpc_distributed --scheduler scheduler.json \\
      --checkpoint run17 --resume --out run17.json --report run17.html
"""


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments. Each subcommand sets ``action``."""
    top = argparse.ArgumentParser(
        PROGRAM,
        description="Nonlinear least squares for data of any size, from a shell.",
        epilog=f"{_EXAMPLES}\n{_ENDS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    info = _added(commands, "info", "versions, devices, memory, and thresholds of the strategies")
    info.set_defaults(action=actions.info)
    plan = _added(commands, "plan", "what a fit will cost", epilog=_ENDS)
    _add_data(plan)
    plan.add_argument(
        "--time",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="read and sum a few chunks to measure the time of a pass (default: if data stream)",
    )
    plan.set_defaults(action=actions.plan_fit)
    fit = _added(commands, "fit", "fit a model", epilog=f"{_EXAMPLES_OF_FIT}\n{_ENDS}")
    _add_data(fit)
    _add_outputs(fit)
    fit.set_defaults(action=actions.run_fit)
    show = _added(commands, "show", "the report of a saved result")
    show.add_argument("result", help="file that --out or result.save() wrote")
    show.add_argument("--report", metavar="HTML", help="write the report as one file of HTML, too")
    show.set_defaults(action=actions.show)
    return top


def _added(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_data(command: argparse.ArgumentParser) -> None:
    """Add the arguments that a plan and a fit have."""
    command.add_argument(
        "model",
        help="a model of nlsq_dask.models, or a sum such as Gaussian+Linear; or module:function, "
        "or file.py:function",
    )
    data = command.add_argument_group("data")
    data.add_argument(
        "--x",
        action="append",
        required=True,
        metavar="WHERE",
        help="a coordinate: path or URL of a Zarr array, file.npy, file.npz::name, "
        "file.csv::column, file.h5::name or file.nc::name; again for each further coordinate",
    )
    data.add_argument("--y", required=True, metavar="WHERE", help="the observations")
    data.add_argument("--sigma", metavar="WHERE", help="standard deviations, or one number")
    data.add_argument("--absolute-sigma", action="store_true", help="sigma are true, not relative")
    data.add_argument(
        "--nan-policy", choices=("raise", "omit"), default="raise", help="what NaN in the data mean"
    )
    data.add_argument(
        "--storage-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the object store; again for each further option",
    )
    search = command.add_argument_group("search")
    search.add_argument("--p0", metavar="A=1,B=2", help="starting values, by name or in order")
    search.add_argument("--bounds", metavar="A=0:10,B=:5", help="lower and upper bounds by name")
    search.add_argument("--fixed", metavar="A=1", help="parameters that are not fitted")
    search.add_argument("--method", choices=METHOD_NAMES, default="trf")
    search.add_argument("--loss", default="linear", help="linear, soft_l1, huber, cauchy or arctan")
    search.add_argument("--f-scale", type=float, default=1.0, help="scale of a robust loss")
    search.add_argument("--max-nfev", type=int, metavar="N", help="most evaluations")
    search.add_argument("--n-starts", type=int, metavar="N", help="number of starting points")
    where = command.add_argument_group("where and how")
    where.add_argument("--workflow", choices=tuple(WORKFLOW_PRESETS))
    where.add_argument("--goal", choices=[goal.name.lower() for goal in OptimizationGoal])
    where.add_argument("--memory-limit-gb", type=float, metavar="GB", help="memory of the fit")
    where.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="scheduler of a Dask cluster: its address, a scheduler file (.json), or local for "
        "workers on this machine",
    )


def _add_outputs(command: argparse.ArgumentParser) -> None:
    """Add the arguments that only a fit has."""
    group = command.add_argument_group("course and outputs")
    group.add_argument("--checkpoint", metavar="DIR", help="write the state after every pass")
    group.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    group.add_argument("--out", metavar="JSON", help="write the result")
    group.add_argument("--report", metavar="HTML", help="write a report with pictures")
    group.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show the progress (default: on a terminal, once a fit has taken two seconds)",
    )
    group.add_argument(
        "--verbose", "-v", action="store_true", help="print a line for every evaluation"
    )
