"""Fit 24 million rows that lie in a Zarr store, on a local cluster, and draw the fit.

A free induction decay is recorded in time order: a damped oscillation, 1.5 times smaller than the
noise of one row. It is written to a Zarr store, of which no process ever holds more than a chunk.
Two worker processes read it for the fit, and once more for the picture's histogram and residuals.

Run with ``make demo``, or ``python examples/demo.py --help``.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import dask.array as da
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import zarr
from distributed import Client, LocalCluster
from numpy.typing import NDArray

from nlsq_dask import FitResult, fit

mpl.use("Agg")
from matplotlib import pyplot as plt

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "demo.png"
TRUTH = {"amplitude": 1.0, "lifetime": 2.5, "frequency": 0.8, "phase": 0.3, "offset": 0.2}
START = {"amplitude": 0.7, "lifetime": 2.0, "frequency": 0.78, "phase": 0.0, "offset": 0.0}
UNITS = {"amplitude": "mV", "lifetime": "µs", "frequency": "MHz", "phase": "rad", "offset": "mV"}
NOISE = 1.5  # millivolt, standard deviation of one row
DURATION = 10.0  # microseconds
CHUNK_ROWS = 500_000  # 4 MB of float64

TIME_EDGES = np.linspace(0.0, DURATION, 201)
VALUE_EDGES = np.linspace(-3.5, 4.0, 151)
RESIDUAL_EDGES = TIME_EDGES[::2]
# Longest wait for a worker process to end, in seconds. Python takes a third of a second of
# processor time to free its modules. By default Dask kills the process after 4 s: too soon on a
# busy machine.
EXIT_TIMEOUT = 60.0
# Colours from Okabe and Ito's palette, which colour-blind readers can tell apart.
VERMILION, BLUE = "#D55E00", "#0072B2"


def induction_decay(
    t: jax.Array,
    amplitude: float,
    lifetime: float,
    frequency: float,
    phase: float,
    offset: float,
) -> jax.Array:
    """Damped oscillation: time in microseconds, frequency in megahertz, signal in millivolt."""
    envelope = amplitude * jnp.exp(-t / lifetime)
    return offset + envelope * jnp.cos(2 * jnp.pi * frequency * t + phase)


def write_measurements(path: Path, rows: int) -> None:
    """Write ``t`` and ``y`` of the given length to a Zarr store, chunk by chunk."""
    group = zarr.create_group(path)
    t, y = (
        group.create_array(name, shape=rows, chunks=CHUNK_ROWS, dtype="f8", compressors=None)
        for name in ("t", "y")
    )
    for start in range(0, rows, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, rows)
        rng = np.random.default_rng(start)
        times = (np.arange(start, stop) + rng.random(stop - start)) * (DURATION / rows)
        t[start:stop] = times
        signal = np.asarray(induction_decay(times, **TRUTH))
        y[start:stop] = signal + rng.normal(0.0, NOISE, stop - start)


@dataclass(frozen=True)
class Summary:
    """What the picture needs to know of the rows; summaries of chunks combine by adding."""

    density: NDArray[np.float64]  # (time bins, value bins), rows in each cell
    residual_sum: NDArray[np.float64]  # (residual bins,)
    residual_square_sum: NDArray[np.float64]  # (residual bins,)
    count: NDArray[np.float64]  # (residual bins,)

    def __add__(self, other: Summary) -> Summary:
        return Summary(
            self.density + other.density,
            self.residual_sum + other.residual_sum,
            self.residual_square_sum + other.residual_square_sum,
            self.count + other.count,
        )


def summarise_chunk(path: Path, start: int, params: Mapping[str, float]) -> Summary:
    """Read one chunk, and bin its rows and their residuals."""
    group = zarr.open_group(path, mode="r")
    rows = slice(start, start + CHUNK_ROWS)
    t, y = np.asarray(group["t"][rows]), np.asarray(group["y"][rows])
    residual = y - np.asarray(induction_decay(t, **params))

    def binned(weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        return np.histogram(t, RESIDUAL_EDGES, weights=weights)[0].astype(np.float64)

    return Summary(
        density=np.histogram2d(t, y, (TIME_EDGES, VALUE_EDGES))[0],
        residual_sum=binned(residual),
        residual_square_sum=binned(residual**2),
        count=binned(),
    )


def summarise(client: Client, path: Path, rows: int, params: Mapping[str, float]) -> Summary:
    """Bin all rows on the cluster."""
    starts = range(0, rows, CHUNK_ROWS)
    chunks = client.gather(client.map(lambda start: summarise_chunk(path, start, params), starts))
    return sum(chunks[1:], start=chunks[0])


def quiet_heartbeats() -> None:
    """Keep a heartbeat that the end of its worker interrupts out of the terminal.

    Dask logs the interrupted heartbeat as an error, with a traceback.
    """
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)


async def close_workers(cluster: LocalCluster) -> None:
    """Close all workers, and wait until their processes have ended."""
    await asyncio.gather(*(w.close(timeout=EXIT_TIMEOUT) for w in cluster.workers.values()))


def draw(result: FitResult, summary: Summary, output: Path) -> None:
    """Save the rows' density, the fitted curve, and the residuals averaged in bins of time."""
    params = {name: parameter.value for name, parameter in result.params.items()}
    figure, (above, below) = plt.subplots(
        2, 1, sharex=True, figsize=(9, 6), height_ratios=(2.4, 1), layout="constrained"
    )
    draw_density(above, result, params, summary)
    draw_residuals(below, summary)
    figure.align_ylabels()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    plt.close(figure)


def draw_density(
    axes: plt.Axes, result: FitResult, params: Mapping[str, float], summary: Summary
) -> None:
    """Histogram of all rows in time and signal, under the fitted curve."""
    mesh = axes.pcolormesh(
        TIME_EDGES, VALUE_EDGES, summary.density.T / 1e3, cmap="Blues", vmin=0, rasterized=True
    )
    axes.figure.colorbar(mesh, ax=axes, label="thousand rows in a cell", pad=0.01)
    times = np.linspace(0.0, DURATION, 1000)
    curve = np.asarray(induction_decay(times, **params))
    axes.plot(times, curve, color=VERMILION, lw=2, label="fit")
    table = "\n".join(
        f"{name:<9} = {p!s:<17} {UNITS[name]:<3}" for name, p in result.params.items()
    )
    axes.text(
        0.985,
        0.96,
        table,
        transform=axes.transAxes,
        ha="right",
        va="top",
        family="monospace",
        fontsize=8.5,
        bbox={"facecolor": "white", "edgecolor": "0.8", "boxstyle": "round,pad=0.5"},
    )
    axes.set_title(
        f"{result.n_points:,} rows from a Zarr store, fitted exactly in {result.n_passes} passes",
        loc="left",
    )
    axes.set_ylabel("signal (mV)")
    axes.legend(loc="lower right", framealpha=1)


def draw_residuals(axes: plt.Axes, summary: Summary) -> None:
    """Mean residual of each bin of time, with the standard error of that mean."""
    mean = summary.residual_sum / summary.count
    spread = summary.residual_square_sum / summary.count - mean**2
    error = np.sqrt(spread / (summary.count - 1))
    centres = 0.5 * (RESIDUAL_EDGES[1:] + RESIDUAL_EDGES[:-1])
    axes.errorbar(centres, 1e3 * mean, 1e3 * error, fmt="o", ms=3, lw=1, color=BLUE, ecolor="0.6")
    axes.axhline(0, color=VERMILION, lw=1.5)
    axes.set(xlabel="time (µs)", ylabel="mean residual\nin a bin (µV)", xlim=(0, DURATION))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=24_000_000, help="rows (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=PICTURE, help="where the picture goes")
    return parser.parse_args()


def main() -> None:
    """Write the data, fit them, print the report, draw the picture."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="nlsq_dask_demo_") as folder:
        path = Path(folder) / "decay.zarr"
        write_measurements(path, arguments.rows)
        print(f"{arguments.rows:,} rows of t and y, {16e-6 * arguments.rows:,.0f} MB, in {path}")

        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
            Client(cluster) as client,
        ):
            t, y = (da.from_zarr(path, component=name) for name in ("t", "y"))
            start = time.perf_counter()
            result = fit(induction_decay, t, y, p0=START, client=client, progress=True)
            print(f"\nfitted in {time.perf_counter() - start:.1f} s\n\n{result}\n")
            values = {name: parameter.value for name, parameter in result.params.items()}
            summary = summarise(client, path, arguments.rows, values)
            client.run(quiet_heartbeats)
            cluster.sync(close_workers, cluster)
    draw(result, summary, arguments.output)
    print(f"picture: {arguments.output}")


if __name__ == "__main__":
    main()
