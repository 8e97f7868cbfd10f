"""Where a laser beam points, and how fast it drifts, from a series of camera images.

The data are a Zarr array (frame, y, x) of 16-bit integers: 150 images of a beam that moves by a
few pixels while the laser warms up.

A two-dimensional Gaussian of the package whose centre moves with time is fitted to all images
together. The coordinates are three small arrays, of frames, rows and columns. They broadcast and
are never expanded. The images are streamed: a task holds one chunk of ten images.

The picture shows the first image with ellipses at one and two standard deviations of the fitted
beam, and the centre of mass of every third image beside the fitted track. Noise pulls the centres
of mass towards the middle of the image; the fit has no such bias.

Run with ``python examples/gaussian_beam.py``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax
import numpy as np
import zarr
from common import BLUE, COLOR_MAP, VERMILION, check, picture_path, save
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nlsq_dask import FitResult, fit, models

BEAM = models.Gaussian2D()
TRUTH = {
    "amplitude": 420.0,  # counts
    "center_x": 70.0,  # pixels
    "center_y": 52.0,
    "sigma_x": 17.0,
    "sigma_y": 11.0,
    "rho": 0.35,
    "drift_x": 0.11,  # pixels a second
    "drift_y": -0.06,
    "offset": 100.0,
}
START = {
    "amplitude": 300.0,
    "center_x": 80.0,
    "center_y": 48.0,
    "sigma_x": 12.0,
    "sigma_y": 12.0,
    "rho": 0.0,
    "drift_x": 0.0,
    "drift_y": 0.0,
    "offset": 80.0,
}
SECONDS = np.arange(150) * 0.8
Y, X = np.arange(96.0), np.arange(144.0)
FRAMES_A_CHUNK = 10
READ_NOISE = 40.0  # counts, large beside that of the photons


def drifting_beam(
    x: tuple[jax.Array, jax.Array, jax.Array],
    amplitude: float,
    center_x: float,
    center_y: float,
    sigma_x: float,
    sigma_y: float,
    rho: float,
    drift_x: float,
    drift_y: float,
    offset: float,
) -> jax.Array:
    """Beam whose centre moves evenly: time in seconds, y and x in pixels."""
    t, row, column = x
    at = (column - drift_x * t, row - drift_y * t)
    return offset + BEAM(at, amplitude, center_x, center_y, sigma_x, sigma_y, rho)


def write_images(path: Path) -> zarr.Array:
    """Write the images chunk by chunk, as a camera would."""
    shape = (SECONDS.size, Y.size, X.size)
    chunks = (FRAMES_A_CHUNK, Y.size, X.size)
    images = zarr.create_array(path, shape=shape, chunks=chunks, dtype="u2")
    rng = np.random.default_rng(8)
    for first in range(0, SECONDS.size, FRAMES_A_CHUNK):
        frames = slice(first, first + FRAMES_A_CHUNK)
        grid = (SECONDS[frames, None, None], Y[:, None], X)
        clean = np.asarray(drifting_beam(grid, **TRUTH))
        images[frames] = rng.normal(clean, READ_NOISE).round().clip(0, 65_535).astype("u2")
    return zarr.open_array(path, mode="r")


def centre_of_mass(image: NDArray[np.uint16], offset: float) -> tuple[float, float]:
    """Centre of mass (x, y) of what is above a quarter of the beam's height."""
    signal = image - offset
    weight = np.where(signal > TRUTH["amplitude"] / 4, signal, 0.0)
    total = weight.sum()
    return float((weight * X).sum() / total), float((weight.T * Y).sum() / total)


def draw(images: zarr.Array, result: FitResult) -> Figure:
    """The first image with the fitted ellipses, and the track of the beam."""
    values = dict(zip(result.names, result.popt, strict=True))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    mesh = left.imshow(images[0], cmap=COLOR_MAP, vmin=0, vmax=600, origin="lower")
    figure.colorbar(mesh, ax=left, label="counts", shrink=0.75)
    angle = np.linspace(0, 2 * np.pi, 200)
    slant = values["rho"] * np.cos(angle) + np.sqrt(1 - values["rho"] ** 2) * np.sin(angle)
    for size in (1, 2):
        column = values["center_x"] + size * values["sigma_x"] * np.cos(angle)
        row = values["center_y"] + size * values["sigma_y"] * slant
        left.plot(column, row, color=VERMILION)
    left.set(xlabel="x (pixels)", ylabel="y (pixels)")
    left.set_title("first image, and the fitted beam at 1σ and 2σ")

    shown = range(0, SECONDS.size, 3)
    centres = np.array([centre_of_mass(images[k], values["offset"]) for k in shown])
    for k, (name, color) in enumerate((("x", BLUE), ("y", VERMILION))):
        start, drift = values[f"center_{name}"], values[f"drift_{name}"]
        moved = centres[:, k] - start
        right.plot(SECONDS[:: shown.step], moved, "o", ms=3.5, color=color, alpha=0.6)
        label = f"{name}: {result.params[f'drift_{name}']} pixels/s"
        right.plot(SECONDS, drift * SECONDS, color=color, label=label)
    right.set(xlabel="time (s)", ylabel="displacement (pixels)", ylim=(-14, 14))
    right.set_title("dots: centres of mass; lines: fit to all images")
    right.legend(frameon=False, loc="lower left")
    return figure


def main() -> None:
    """Write the images, fit all of them together, check the answer, draw the picture."""
    output = picture_path(__doc__, "gaussian_beam.png")
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder) / "beam.zarr")
        x = (SECONDS[:, None, None], Y[:, None], X)
        result = fit(drifting_beam, x, images, START)
        print(result)
        check(result, TRUTH)
        save(draw(images, result), output)


if __name__ == "__main__":
    main()
