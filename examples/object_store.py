"""A fluorescence decay in an object store, fitted by its URL.

The data are two Zarr arrays, times and intensities, in a bucket of S3. The server of S3 (moto) runs
within this script, on this machine. Data of a real store are fitted by the same call, with the
options of that store.

Intensity, lifetime and background are fitted to all rows. A task reads a chunk from the store when
it needs it, and no copy of the data is made on a disk.

The picture is the result's own: ``result.plot()`` reads the store once more and counts the rows in
cells.

Run with ``python examples/object_store.py``. It needs ``pip install "nlsq_dask[plot,s3]"
"moto[server]"``.
"""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import obstore.store
import zarr
from common import check, picture_path, save
from moto.server import ThreadedMotoServer
from zarr.storage import ObjectStore

from nlsq_dask import fit

TRUTH = {"intensity": 3.2, "lifetime": 4.1, "background": 0.35}
START = {"intensity": 1.0, "lifetime": 2.0, "background": 0.0}
ROWS, CHUNK = 400_000, 50_000
DURATION = 25.0  # nanoseconds
NOISE = 0.25
BUCKET, STORE = "lab", "decay.zarr"


def decay(t: jax.Array, intensity: float, lifetime: float, background: float) -> jax.Array:
    """Exponential decay: times in nanoseconds."""
    return background + intensity * jnp.exp(-t / lifetime)


@contextmanager
def s3_server() -> Iterator[dict[str, Any]]:
    """Options of a server on this machine that holds an empty bucket."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # no line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request).close()
        # The server takes any credentials.
        yield {"access_key_id": "me", "secret_access_key": "mine", "endpoint": endpoint}
    finally:
        server.stop()


def write_decay(options: dict[str, Any]) -> None:
    """Write times and intensities to the bucket, in float32."""
    store = obstore.store.S3Store(bucket=BUCKET, client_options={"allow_http": True}, **options)
    group = zarr.open_group(ObjectStore(store), path=STORE, mode="w")
    rng = np.random.default_rng(4)
    t = np.sort(rng.uniform(0, DURATION, ROWS)).astype("f4")
    y = rng.normal(np.asarray(decay(t, **TRUTH)), NOISE).astype("f4")
    group.create_array("t", data=t, chunks=(CHUNK,))
    group.create_array("y", data=y, chunks=(CHUNK,))


def main() -> None:
    """Start the server, write the data, fit them by their URLs, check, draw the picture."""
    output = picture_path(__doc__, "object_store.png")
    with s3_server() as options:
        write_decay(options)
        url = f"s3://{BUCKET}/{STORE}"
        result = fit(decay, f"{url}/t", f"{url}/y", START, storage_options=options)
        print(result)
        check(result, TRUTH)
        figure = result.plot()
    figure.axes[0].set_ylabel("intensity (thousand counts)")
    figure.axes[2].set_xlabel("time (ns)")
    save(figure, output)


if __name__ == "__main__":
    main()
