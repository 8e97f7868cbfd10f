"""Errors and notes of devices, processors, clients, workers and processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nlsq_dask._errors.kinds import (
    ClusterError,
    ForkError,
    InputError,
    InputTypeError,
    join_names,
    shown,
)


def no_such_device(platform: object, available: str) -> InputError:
    return InputError(
        f"device={platform!r} is not available: JAX runs on {available!r} here. Pass device='cpu', "
        "'gpu', a name like 'gpu:0', an element of jax.local_devices() or None, or install a JAX "
        "that supports the device."
    )


def no_devices() -> InputError:
    return InputError(
        "device=[] names no device. Pass jax.local_devices(), or None for JAX's default."
    )


def device_twice(names: Sequence[str]) -> InputError:
    return InputError(
        f"device names {join_names(names)} more than once: pass each device once. A device takes "
        "blocks in turn with the others."
    )


def mixed_devices(platforms: Sequence[str]) -> InputError:
    return InputError(
        f"device names devices of {join_names(platforms)}, whose sums differ in their last bits: "
        "pass devices of one platform."
    )


def device_of_another_process(name: str, process: int) -> InputError:
    return InputError(
        f"device names {name}, a device of JAX process {process}: pass devices of this process, "
        "as in jax.local_devices()."
    )


def devices_on_a_cluster(names: Sequence[str]) -> InputError:
    return InputError(
        f"device names {join_names(names)} of this process, but workers of a cluster compute: pass "
        "device='cpu', 'gpu' or None, and each worker takes its own devices."
    )


def vectors_narrow(workers: Sequence[str], bits: int) -> tuple[str, str]:
    """The note for the log, and a short one for the line of progress."""
    text = (
        f"workers get no groups of this fit, since their vectors are narrower than its {bits} bits "
        f"and round otherwise: {join_names(workers)}. Start workers on processors with AVX-512, or "
        "begin the fit anew, for the width that all workers have."
    )
    return text, f"workers with narrow vectors, not used: {len(workers)}"


def no_wide_worker(workers: Sequence[str], bits: int, option: str) -> ClusterError:
    return ClusterError(
        f"the fit began with vectors of {bits} bits (AVX-512), and no worker that is left has them "
        f"({join_names(workers)}): start a worker that has them, give it longer by the option "
        f"{option} of Dask's configuration, or begin the fit anew."
    )


def vectors_narrower_than_before(bits: int, before: int) -> str:
    return (
        f"the checkpoint was computed with vectors of {before} bits (AVX-512), which not all "
        f"processors of this fit have. The fit goes on with {bits} bits, and its answer may differ "
        "in the last digits: resume where all processors have AVX-512 for the same digits."
    )


def not_a_client(value: object) -> InputTypeError:
    return InputTypeError(
        f"client = {shown(value)} is no distributed.Client: pass one, or None for the active one."
    )


def cluster_as_client(value: object) -> InputTypeError:
    return InputTypeError(
        f"client = {shown(value)} is a cluster: pass a client of it, client=cluster.get_client()."
    )


def client_not_running(status: object) -> InputError:
    return InputError(
        f"the client is {status}: pass a client that is connected, distributed.Client(address)."
    )


def client_asynchronous() -> InputError:
    return InputError(
        "the client is asynchronous, or fit was called in the thread of its event loop, which a "
        "fit would block: pass distributed.Client(..., asynchronous=False), and call fit in "
        "another thread, as with asyncio.to_thread(fit, ...)."
    )


def workers_differ(name: str, here: object, there: Mapping[str, object]) -> InputError:
    few = [f"{address} has {version or 'none'}" for address, version in there.items()]
    return InputError(
        f"this process has {name} {here}, and the workers have others ({join_names(few)}), so that "
        "they cannot run this fit, or with other bits: install the same versions everywhere."
    )


def no_workers() -> str:
    return (
        "no worker has joined the cluster yet, so that nothing is known of its memory and speed: "
        "plan again after client.wait_for_workers(1)."
    )


def forked_after_fit() -> ForkError:
    return ForkError(
        "this process was forked from one that had fitted before, and JAX, Dask and Zarr hang in "
        "such a process, as their threads are not forked: start processes by "
        "multiprocessing.get_context('spawn') or 'forkserver', or fork before the first fit."
    )
