"""Maps of diffusion from a stack of images at 12 diffusion weightings: one fit for each voxel.

The data are a stack (b, y, x) of a magnetic resonance scanner. The signal of a voxel falls as
``s0 exp(-b D)`` with the weighting b; the diffusivity D tells tissues from fluid. Some voxels are
broken: a few are dead, some were never measured, and some are saturated.

Each voxel is fitted by itself, and the maps go to a Zarr store chunk by chunk, as they would for a
stack that is larger than memory. The status map says which voxels have no answer, and why.

The picture shows an image, the maps of D and of its error, and the signal of one voxel of each
tissue with its fit.

Run with ``python examples/diffusion_maps.py``.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from common import BLUE, COLOR_MAP, GREEN, VERMILION, check, picture_path, save
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from nlsq_dask import ConvergenceWarning, FitMaps, fit_each

# Diffusivities in 10⁻³ mm²/s, and signals without weighting.
TISSUES = {"white": 0.7, "grey": 0.9, "fluid": 3.0}
SIGNALS = {"white": 600.0, "grey": 800.0, "fluid": 1200.0}
COLORS = dict(zip(TISSUES, (BLUE, GREEN, VERMILION), strict=True))
B_VALUES = np.linspace(0.0, 2.0, 12)  # 10³ s/mm²
VOXELS = 96
NOISE = 20.0


def signal(b: jax.Array, s0: float, D: float) -> jax.Array:
    """Signal of a voxel at the weighting b."""
    return s0 * jnp.exp(-b * D)


def tissue_map() -> np.ndarray:
    """Number of the tissue of each voxel: a disk of white in a disk of grey around, and fluid."""
    y, x = np.mgrid[-1 : 1 : VOXELS * 1j, -1 : 1 : VOXELS * 1j]
    tissues = np.where(np.hypot(x, 1.2 * y) < 0.6, 0, 1)
    fluid = (np.hypot(x - 0.25, y) < 0.2) | (np.hypot(x + 0.25, y) < 0.2)
    return np.where(fluid, 2, tissues)


def stack_of(tissues: np.ndarray) -> xr.DataArray:
    """The noisy stack, with its broken voxels."""
    rng = np.random.default_rng(5)
    s0, D = (np.array(list(v.values()))[tissues] for v in (SIGNALS, TISSUES))
    images = s0 * np.exp(-B_VALUES[:, None, None] * D)
    images += rng.normal(0.0, NOISE, images.shape)
    images[:, 10:13, 10:13] = 0.0  # dead
    images[:, 80:, :8] = np.nan  # outside of the field of view
    images[0, 60, 40:44] = np.inf  # saturated
    return xr.DataArray(
        images.astype(np.float32),
        dims=("b", "y", "x"),
        coords={"b": ("b", B_VALUES, {"units": "10³ s/mm²"})},
        name="signal",
    )


def voxel_of(tissues: np.ndarray, number: int) -> tuple[int, int]:
    """A voxel of a tissue, near the middle of its list."""
    y, x = np.nonzero(tissues == number)
    return int(y[y.size // 2]), int(x[x.size // 2])


def draw(stack: xr.DataArray, maps: FitMaps, tissues: np.ndarray) -> Figure:
    """An image, two maps, and the signals of three voxels."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), layout="constrained")
    pictures: dict[str, tuple[Any, float, str]] = {
        "image at b = 0": (stack[0], 1400, "signal (a.u.)"),
        "diffusivity": (maps["D"], 3.5, "D (10⁻³ mm²/s)"),
        "its standard error": (maps.perr["D"], 0.15, "error of D (10⁻³ mm²/s)"),
    }
    for ax, (title, (values, most, label)) in zip(axes.flat, pictures.items(), strict=False):
        shown = ax.imshow(np.asarray(values), cmap=COLOR_MAP, vmin=0, vmax=most)
        ax.set(title=title, xticks=[], yticks=[])
        figure.colorbar(shown, ax=ax, label=label, shrink=0.85)
    ax, curve = axes[1, 1], np.linspace(0, B_VALUES[-1], 100)
    for number, (name, color) in enumerate(COLORS.items()):
        y, x = voxel_of(tissues, number)
        result = maps.at(y=y, x=x)
        ax.plot(curve, result.predict(curve), color=color)
        ax.plot(B_VALUES, stack[:, y, x], "o", ms=4, color=color, label=name)
    ax.set(title="one voxel of each tissue", xlabel="b (10³ s/mm²)", ylabel="signal (a.u.)")
    ax.legend(frameon=False)
    return figure


def main() -> None:
    """Fit each voxel of the stack, check the maps, draw the picture."""
    output = picture_path(__doc__, "diffusion_maps.png")
    tissues = tissue_map()
    stack = stack_of(tissues)
    with tempfile.TemporaryDirectory() as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of the broken voxels
            stored = fit_each(
                signal,
                "b",
                stack.chunk(y=32, x=32),
                {"s0": 1000.0, "D": 1.0},
                store=Path(folder) / "maps.zarr",
                progress=False,
            )
            maps = stored.compute()
        print(maps)
        # The mean of the maps over a tissue has an error far below that of a voxel.
        means, errors = {}, {}
        for number, name in enumerate(TISSUES):
            values = maps["D"].values[(tissues == number) & maps.success.values]
            means[name], errors[name] = values.mean(), values.std() / np.sqrt(values.size)
        of_tissues: Any = SimpleNamespace(
            names=tuple(TISSUES),
            popt=np.array(list(means.values())),
            perr=np.array(list(errors.values())),
            params={name: f"{means[name]:.4f} ± {errors[name]:.4f}" for name in TISSUES},
            success=True,
            message="",
        )
        check(of_tissues, TISSUES)
        save(draw(stack, maps, tissues), output)


if __name__ == "__main__":
    main()
