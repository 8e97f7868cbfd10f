"""Diffusion of colloids from a two-time correlation cube of X-ray photon correlation spectroscopy.

The data are a labelled cube (q, t1, t2) of xarray: the correlation of the speckle patterns at the
times t1 and t2, on twelve rings of the detector. Rings with large q have more pixels, and smaller
errors.

One diffusion coefficient, one contrast and one baseline are fitted to all rings together. The cube
is symmetric, and its diagonal has shot noise, so that a mask leaves only the half with t2 > t1.

The picture shows the cube at one q, and the mean over all pairs of times with the same lag: dots
are data, lines are the fit.

Run with ``python examples/xpcs.py``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from common import BLUE, COLOR_MAP, GREEN, ORANGE, VERMILION, check, picture_path, save
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from nlsq_dask import FitResult, fit

TRUTH = {"diffusion": 0.85, "contrast": 0.18, "baseline": 1.02}
START = {"diffusion": 0.3, "contrast": 0.1, "baseline": 1.0}
Q = np.linspace(0.2, 1.3, 12)  # 1/nm
TIMES = np.arange(120) * 0.05  # seconds
NOISE = 0.03  # of one value of the cube at 1/nm
SHOWN = {1: ORANGE, 3: GREEN, 6: BLUE, 11: VERMILION}  # rings in the picture
SHOWN_MAP = 3


def two_time(
    x: tuple[jax.Array, jax.Array, jax.Array],
    diffusion: float,
    contrast: float,
    baseline: float,
) -> jax.Array:
    """Correlation of simple diffusion, after Siegert: q in 1/nm, times in s, nm²/s."""
    q, t1, t2 = x
    return baseline + contrast * jnp.exp(-2 * diffusion * q**2 * jnp.abs(t2 - t1))


def simulate() -> xr.Dataset:
    """The cube ``c2`` with its error on each ring."""
    rng = np.random.default_rng(11)
    error = NOISE / Q
    grid = (Q[:, None, None], TIMES[None, :, None], TIMES[None, None, :])
    noise = rng.normal(0.0, error[:, None, None], (Q.size, TIMES.size, TIMES.size))
    upper = np.triu(noise, k=1)
    shot = 0.5 * np.eye(TIMES.size)  # each photon is correlated with itself
    cube = np.asarray(two_time(grid, **TRUTH)) + upper + upper.swapaxes(1, 2) + shot
    return xr.Dataset(
        {"c2": (("q", "t1", "t2"), cube), "error": ("q", error)},
        {
            "q": ("q", Q, {"units": "1/nm"}),
            "t1": ("t1", TIMES, {"units": "s"}),
            "t2": ("t2", TIMES, {"units": "s"}),
        },
    )


def draw(data: xr.Dataset, result: FitResult) -> Figure:
    """The map of one ring, and the correlation against the lag on four rings."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    ring = data["c2"][SHOWN_MAP]
    mesh = left.pcolormesh(data.t1, data.t2, ring.T, cmap=COLOR_MAP, vmin=0.95, vmax=1.3)
    figure.colorbar(mesh, ax=left, label="correlation $C_2$", extend="max")
    left.set(xlabel="$t_1$ (s)", ylabel="$t_2$ (s)", aspect="equal")
    left.set_title(f"one ring, q = {Q[SHOWN_MAP]:.1f} nm⁻¹", loc="left")

    steps = np.unique(np.geomspace(1, TIMES.size - 4, 22).astype(int))
    curve = np.geomspace(TIMES[1], TIMES[-1], 200)
    for k, color in SHOWN.items():
        values = data["c2"][k].to_numpy()
        mean = [np.diagonal(values, step).mean() for step in steps]
        spread = [Q[k] ** -1 * NOISE / np.sqrt(TIMES.size - step) for step in steps]
        right.errorbar(TIMES[steps], mean, spread, fmt="o", ms=3.5, lw=1, color=color)
        grid = (np.full(curve.size, Q[k]), np.zeros(curve.size), curve)
        right.plot(curve, result.predict(grid), color=color, label=f"{Q[k]:.1f}")
    right.set(xscale="log", xlabel="lag $t_2 - t_1$ (s)", ylabel="correlation $g_2$")
    right.legend(title="q (nm⁻¹)", frameon=False)
    right.set_title(f"D = {result.params['diffusion']} nm²/s on all rings", loc="left")
    return figure


def main() -> None:
    """Make the cube, fit all rings together, check the answer, draw the picture."""
    output = picture_path(__doc__, "xpcs.png")
    data = simulate()
    result = fit(
        two_time,
        ("q", "t1", "t2"),
        data["c2"],
        START,
        sigma=data["error"],
        absolute_sigma=True,
        mask=data["t2"] <= data["t1"],
    )
    print(result)
    check(result, TRUTH)
    save(draw(data, result), output)


if __name__ == "__main__":
    main()
