"""The vectors of the workers' processors: one width for all groups of a fit.

XLA rounds otherwise for vectors of another width. So a fit compiles its kernels for one width
everywhere: the widest that all workers have when the fit begins. A worker with narrower vectors
that comes later gets no groups of the fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from nlsq_dask.core.resources import XLA_VECTOR_BITS, vector_bits
from nlsq_dask.engines.dask.ask_workers import ask_workers
from nlsq_dask.kernels.table import Kernels

if TYPE_CHECKING:
    from distributed import Client

# Bits of the vectors of each worker that was asked, by address.
_known: WeakKeyDictionary[Client, dict[str, int]] = WeakKeyDictionary()


class NarrowVectorsError(Exception):
    """A group is at a worker whose vectors are too narrow; it must run on another worker."""


def check_vectors(kernels: Kernels) -> None:
    """Refuse kernels for wider vectors than this process has.

    Raises
    ------
    NarrowVectorsError
    """
    if kernels.vector_bits > XLA_VECTOR_BITS and kernels.vector_bits > vector_bits():
        raise NarrowVectorsError


def narrowest_vectors(client: Client) -> int:
    """Bits of the narrowest vectors of a worker; without workers, bits that every CPU has."""
    return min(_bits_of_workers(client).values(), default=XLA_VECTOR_BITS)


def wide_workers(client: Client, bits: int, *, anew: bool = False) -> tuple[list[str], list[str]]:
    """Workers whose vectors have so many bits, and workers with narrower ones, by address.

    Parameters
    ----------
    client : distributed.Client
    bits : int
    anew : bool
        Whether to ask also workers that were asked before.
    """
    if anew:
        _known.pop(client, None)
    found = _bits_of_workers(client)
    wide = [address for address, own in found.items() if own >= bits]
    return wide, [address for address in found if address not in wide]


def _bits_of_workers(client: Client) -> dict[str, int]:
    """Bits of the vectors of each worker, by address. Only new workers are asked."""
    known = _known.setdefault(client, {})
    there = list(client.nthreads())
    new = [address for address in there if address not in known]
    if new:
        told = ask_workers(client, vector_bits, workers=new)
        # A worker that has just left answers with an error, or not at all, and gets no group.
        known.update({a: bits for a, bits in told.items() if isinstance(bits, int)})
        there = [address for address in there if address in known or address in told]
    return {address: known.get(address, XLA_VECTOR_BITS) for address in there}
