"""The T2 of a phantom from a stack of images at 32 echo times, in a Zarr store of float32.

The data are a stack (echo, y, x) of a magnetic resonance scanner, and a mask of what lies outside
of the tube of gel. The signal of the gel falls as an exponential of the echo time.

Amplitude, T2 and the offset of the receiver are fitted to all pixels of the tube together. The echo
time is the only coordinate. So one reading collapses the stack to the mean of each echo, and the
fit of the means is exact: the report says ``passes 1``.

The picture shows the image of one echo, the mean of each echo with the fitted curve, and the
residuals of the means with their errors.

Run with ``python examples/t2_relaxation.py``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import zarr
from common import BLUE, COLOR_MAP, VERMILION, check, picture_path, save
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nlsq_dask import FitResult, fit

TRUTH = {"amplitude": 900.0, "t2": 78.0, "offset": 40.0}
START = {"amplitude": 500.0, "t2": 40.0, "offset": 0.0}
ECHO_TIMES = np.arange(1, 33) * 10.0  # milliseconds
PIXELS = 96
NOISE = 40.0  # of one pixel
SHOWN_ECHO = 4


def relaxation(t: jax.Array, amplitude: float, t2: float, offset: float) -> jax.Array:
    """Transverse relaxation: times in milliseconds."""
    return offset + amplitude * jnp.exp(-t / t2)


def write_stack(path: Path) -> None:
    """Write the stack, an image a chunk, and the mask of pixels that are not in the tube."""
    group = zarr.create_group(path)
    centred = np.arange(PIXELS) - PIXELS / 2
    outside = np.hypot(centred[:, None], centred) > 0.4 * PIXELS
    group.create_array("outside", data=outside)
    shape = (ECHO_TIMES.size, PIXELS, PIXELS)
    stack = group.create_array("signal", shape=shape, chunks=(1, PIXELS, PIXELS), dtype="f4")
    rng = np.random.default_rng(3)
    for echo, signal in enumerate(np.asarray(relaxation(ECHO_TIMES, **TRUTH))):
        clean = np.where(outside, TRUTH["offset"], signal)
        stack[echo] = rng.normal(clean, NOISE)


def echo_means(group: zarr.Group) -> tuple[NDArray[np.float64], int]:
    """Mean of each echo in the tube, and the number of pixels in the tube."""
    inside = ~np.asarray(group["outside"])
    images = (np.asarray(group["signal"][echo]) for echo in range(ECHO_TIMES.size))
    return np.array([image[inside].mean(dtype=float) for image in images]), int(inside.sum())


def draw(group: zarr.Group, result: FitResult) -> Figure:
    """One image, the decay, and its residuals."""
    figure, axes = plt.subplot_mosaic(
        [["image", "decay"], ["image", "residuals"]],
        figsize=(9, 4.2),
        height_ratios=(2.4, 1),
        layout="constrained",
    )
    image = axes["image"].imshow(group["signal"][SHOWN_ECHO], cmap=COLOR_MAP, vmin=0, vmax=800)
    axes["image"].contour(group["outside"], levels=[0.5], colors="white", linewidths=1.5)
    axes["image"].set(xlabel="x (pixels)", ylabel="y (pixels)")
    axes["image"].set_title(f"echo at {ECHO_TIMES[SHOWN_ECHO]:.0f} ms, and the edge of the tube")
    figure.colorbar(image, ax=axes["image"], label="signal (a.u.)", shrink=0.75)

    means, pixels = echo_means(group)
    curve = np.linspace(0, ECHO_TIMES[-1], 200)
    axes["decay"].plot(curve, result.predict(curve), color=VERMILION, label="fit")
    axes["decay"].plot(ECHO_TIMES, means, "o", ms=4, color=BLUE, label="mean of the tube")
    axes["decay"].set(ylabel="signal (a.u.)", ylim=(0, None))
    axes["decay"].set_title(
        f"$T_2$ = {result.params['t2']} ms, readings of the data: {result.n_passes}"
    )
    axes["decay"].legend(frameon=False)
    axes["decay"].sharex(axes["residuals"])
    axes["decay"].tick_params(labelbottom=False)
    residuals = means - result.predict(ECHO_TIMES)
    error = result.rmse / np.sqrt(pixels)
    axes["residuals"].errorbar(ECHO_TIMES, residuals, error, fmt="o", ms=4, lw=1, color=BLUE)
    axes["residuals"].axhline(0, color=VERMILION)
    axes["residuals"].set(xlabel="echo time (ms)", ylabel="residual\n(a.u.)", xlim=(0, None))
    figure.align_ylabels([axes["decay"], axes["residuals"]])
    return figure


def main() -> None:
    """Write the stack, fit it in one reading, check the answer, draw the picture."""
    output = picture_path(__doc__, "t2_relaxation.png")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "echoes.zarr"
        write_stack(path)
        group = zarr.open_group(path, mode="r")
        result = fit(
            relaxation,
            ECHO_TIMES[:, None, None],
            group["signal"],
            START,
            mask=group["outside"],
        )
        print(result)
        check(result, TRUTH)
        save(draw(group, result), output)


if __name__ == "__main__":
    main()
