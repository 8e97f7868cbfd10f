"""A pass over Zarr arrays in an object store: obstore, fsspec (s3fs), and the local disk.

Measured, in seconds, on Dask's threads in turn: a pass (a exp(-b x) + c, p=3) over the same bytes
of x and y, uncompressed, read by each library from a server of S3 (moto) on this machine, and from
the disk. The server has a process of its own. It waits before each answer, as a store across a
network does. `--chunk-rows` is the size of the larger chunks; the smaller ones are a tenth. "read"
is the fastest concurrent read of the same bytes by obstore, without a fit: the least median of 16,
32 and 64 requests in flight.

Bar, obstore/read, where the server waits: 1.15.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import zarr

from benchmarks.common import Row, arguments, interleave, judge, ratio, report
from benchmarks.problems import EXPONENTIAL
from benchmarks.streaming import write_store
from nlsq_dask.core.questions import SumsAt
from nlsq_dask.engines.open_engine import open_engine
from nlsq_dask.io.sources import observe
from nlsq_dask.io.stored import in_blocks, of_zarr
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.signature import parameter_names

BUCKET = "bucket"
CREDENTIALS = ("benchmark", "benchmark")

#: Milliseconds that the server waits before an answer: none, and those of a store in the region.
WAITS = (0, 30)

#: Requests in flight of the reads without a fit.
IN_FLIGHT = (16, 32, 64)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__, rows=8_000_000, chunk_rows=1_000_000, repeat=5)
    options = parser.parse_args(argv)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="nlsq_dask_bench_") as folder:
        for chunk in (options.chunk_rows, options.chunk_rows // 10):
            path = Path(folder) / f"{chunk}.zarr"
            write_store(path, options.rows, chunk, "none")
            for wait in WAITS:
                with s3_server(wait / 1000) as endpoint:
                    upload(path, endpoint)
                    rows.append(measure(path, endpoint, options.repeat, chunk, wait))
    return report(f"object stores: a pass over {options.rows:,} rows", rows, options.json)


def measure(path: Path, endpoint: str, repeat: int, chunk: int, wait: int) -> Row:
    """Time a pass by each library."""
    model = EXPONENTIAL.model(jnp)
    spec = prepare_model(model, parameter_names(model))
    question = SumsAt(np.array(EXPONENTIAL.start), np.eye(len(EXPONENTIAL.start)))
    passes: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:
        for name, group in groups(path, endpoint).items():
            stored = (of_zarr(group[name], name) for name in "xy")
            data = observe(*in_blocks(*stored))
            engine = stack.enter_context(open_engine(data, Kernels((spec,), "cpu")))
            passes[name] = partial(engine.ask, question)
        for most in IN_FLIGHT:
            passes[f"read, {most}"] = partial(read, path, endpoint, most)
        seconds = interleave(passes, repeat)
    reads = [seconds.pop(f"read, {most}") for most in IN_FLIGHT]
    seconds["read"] = min(reads, key=lambda values: float(np.median(values)))
    found = ratio(seconds["obstore"], seconds["read"])
    times = {name: float(np.median(values)) for name, values in seconds.items()}
    head: Row = {"chunk": f"{8e-6 * chunk:g} MB", "wait": f"{wait} ms"}
    bar = judge(found, at_most=1.15) if wait else {}
    return head | times | {"obstore/read": found} | bar


def read(path: Path, endpoint: str, most: int) -> int:
    """Bytes of all chunks of x and y, read with so many requests in flight."""
    import obstore

    bucket = by_obstore(endpoint).store
    files = [p for name in "xy" for p in (path / name / "c").rglob("*") if p.is_file()]

    async def all_chunks() -> int:
        free = asyncio.Semaphore(most)

        async def one(file: Path) -> int:
            async with free:
                found = await obstore.get_async(bucket, f"{path.name}/{file.relative_to(path)}")
                return len(await found.bytes_async())

        return sum(await asyncio.gather(*map(one, files)))

    return asyncio.run(all_chunks())


def groups(path: Path, endpoint: str) -> Mapping[str, zarr.Group]:
    """The same arrays, to be read from the disk and by each library from the server."""
    from zarr.storage import FsspecStore

    key, secret = CREDENTIALS
    options = {"key": key, "secret": secret, "endpoint_url": endpoint}
    by_fsspec = FsspecStore.from_url(
        f"s3://{BUCKET}/{path.name}", storage_options=options, read_only=True
    )
    return {
        "disk": zarr.open_group(path, mode="r"),
        "obstore": zarr.open_group(by_obstore(endpoint), path=path.name, mode="r"),
        "fsspec": zarr.open_group(by_fsspec, mode="r"),
    }


def by_obstore(endpoint: str) -> Any:
    """The bucket, as obstore opens it."""
    import obstore.store
    from zarr.storage import ObjectStore

    key, secret = CREDENTIALS
    store = obstore.store.S3Store(
        bucket=BUCKET,
        endpoint=endpoint,
        access_key_id=key,
        secret_access_key=secret,
        client_options={"allow_http": True},
    )
    return ObjectStore(store)


def upload(path: Path, endpoint: str) -> None:
    """Copy a store to the bucket, file by file."""
    import obstore

    bucket = by_obstore(endpoint).store
    for file in path.rglob("*"):
        if file.is_file():
            obstore.put(bucket, f"{path.name}/{file.relative_to(path)}", file.read_bytes())


@contextmanager
def s3_server(wait: float) -> Iterator[str]:
    """The address of a server with an empty bucket, which waits so many seconds per request."""
    spawn = multiprocessing.get_context("spawn")
    ready, told = spawn.Pipe(duplex=False)
    server = spawn.Process(target=serve, args=(wait, told), daemon=True)
    server.start()
    try:
        endpoint = f"http://127.0.0.1:{ready.recv()}"
        made = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
        urllib.request.urlopen(made).close()
        yield endpoint
    finally:
        server.terminate()
        server.join()


def serve(wait: float, ready: Any) -> None:
    """Serve S3 until the process ends."""
    import logging

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = DomainDispatcherApplication(create_backend_app)

    def waiting(environ: Any, start_response: Any) -> Any:
        time.sleep(wait)
        return app(environ, start_response)

    server = make_server("127.0.0.1", 0, waiting, threaded=True)
    ready.send(server.server_port)
    server.serve_forever()


if __name__ == "__main__":
    main()
