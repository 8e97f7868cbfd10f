"""A server on this machine that speaks S3, and what has to stay secret."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import obstore.store
import zarr
from moto.server import ThreadedMotoServer
from zarr.storage import ObjectStore

BUCKET = "bucket"

#: Credentials that no name, text, file or log may hold.
CANARY = "CANARY"
CREDENTIALS = {"key": f"{CANARY}-key-id", "secret": f"{CANARY}-secret-key"}


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of a server with an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        made = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
        urllib.request.urlopen(made).close()
        yield endpoint
    finally:
        server.stop()


def group_on(endpoint: str, path: str) -> zarr.Group:
    """A new group in the bucket, for writing."""
    store = obstore.store.S3Store(
        bucket=BUCKET,
        endpoint=endpoint,
        access_key_id="writer",
        secret_access_key="writer",
        client_options={"allow_http": True},
    )
    return zarr.open_group(ObjectStore(store), path=path, mode="w")


def options_of(endpoint: str) -> dict[str, Any]:
    """Options of the store, with the names of s3fs."""
    return {**CREDENTIALS, "endpoint_url": endpoint}
