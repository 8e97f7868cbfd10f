"""The devices that kernels run on.

A *choice* of devices is a value that can be pickled and compared: None for JAX's default, "cpu",
"gpu", or a tuple of names such as ``("gpu:0", "gpu:1")``. It is looked up in the process that
computes, so that a worker uses the devices that it sees.

The devices of a choice take blocks in turn. They run the same program, and their answers are added
in the order of the blocks, so the sums have the same bits for any number of devices of one kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, TypeAlias

import jax

from nlsq_dask import _errors
from nlsq_dask.core.resources import free_bytes

DeviceChoice: TypeAlias = str | tuple[str, ...] | None

# What a user may pass.
DeviceArgument: TypeAlias = "str | jax.Device | Sequence[str | jax.Device] | None"

PLATFORMS = ("cpu", "gpu")


def checked_device(given: Any) -> DeviceChoice:
    """The choice that an argument names.

    Parameters
    ----------
    given : str, jax.Device, sequence of str or jax.Device, or None
        "cpu" and "gpu" in a sequence stand for all local devices of the platform. "gpu:1" is one
        device, also without a sequence.

    Raises
    ------
    InputError
        If JAX has no such device in this process, or if the sequence is empty or names a device
        twice or devices of several platforms.
    """
    if given is None or (isinstance(given, str) and given in PLATFORMS):
        find_devices(given)
        return given
    if isinstance(given, (str, jax.Device)):
        given = [given]
    if not isinstance(given, Sequence):
        raise _errors.no_such_device(given, jax.default_backend())
    names = [name for item in given for name in _names(item)]
    if not names:
        raise _errors.no_devices()
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise _errors.device_twice(twice)
    platforms = sorted({name.partition(":")[0] for name in names})
    if len(platforms) > 1:
        raise _errors.mixed_devices(platforms)
    find_devices(tuple(names))
    return tuple(names)


def check_names_no_devices(choice: DeviceChoice) -> None:
    """Check that a choice holds for workers, whose devices have other names.

    Raises
    ------
    InputError
        If the choice names devices of this process.
    """
    if isinstance(choice, tuple):
        raise _errors.devices_on_a_cluster(choice)


def find_devices(choice: DeviceChoice) -> tuple[jax.Device, ...]:
    """The local devices of a choice.

    These are all GPUs, but one device of a CPU, whose cores work together on it. A tuple names each
    device.

    Raises
    ------
    InputError
        If JAX has no such device.
    """
    if choice is None:
        local = jax.local_devices()
    elif isinstance(choice, str) and choice in PLATFORMS:
        local = _local(choice)
    else:
        names = (choice,) if isinstance(choice, str) else choice
        return tuple(_named(name) for name in names)
    return tuple(local[:1] if local[0].platform == "cpu" else local)


def find_device(choice: DeviceChoice) -> jax.Device:
    """The first device of a choice, and errors, as for :func:`find_devices`."""
    return find_devices(choice)[0]


def device_names(choice: DeviceChoice) -> tuple[str, ...]:
    """Names of the devices of a choice, as ``device=`` takes them."""
    return tuple(map(_name, find_devices(choice)))


def free_memory(choice: DeviceChoice) -> int | None:
    """Bytes that are free on all devices of a choice together; None where JAX does not tell.

    The devices share the rows equally. Therefore the device with the least memory counts for each.
    """
    found = [free_bytes(device) for device in find_devices(choice)]
    known = [free for free in found if free is not None]
    return min(known) * len(found) if len(known) == len(found) else None


def next_device(devices: tuple[jax.Device, ...]) -> jax.Device:
    """The device that takes the next block."""
    if len(devices) == 1:
        return devices[0]
    return devices[next(_turns(devices)) % len(devices)]


@cache
def _turns(devices: tuple[jax.Device, ...]) -> Iterator[int]:  # noqa: ARG001, one for each choice
    # `next` of a count is one operation under the interpreter's lock.
    return itertools.count()


def _names(item: object) -> list[str]:
    if isinstance(item, jax.Device):
        if item.process_index != jax.process_index():
            raise _errors.device_of_another_process(str(item), item.process_index)
        return [_name(item)]
    if isinstance(item, str):
        return [_name(device) for device in _local(item)] if item in PLATFORMS else [item]
    raise _errors.no_such_device(item, jax.default_backend())


def _name(device: jax.Device) -> str:
    return f"{device.platform}:{device.id}"


def _named(name: str) -> jax.Device:
    platform, _, _ = name.partition(":")
    found = [device for device in _local(platform, name) if _name(device) == name]
    if not found:
        raise _errors.no_such_device(name, jax.default_backend())
    return found[0]


def _local(platform: str, name: str | None = None) -> list[jax.Device]:
    try:
        return list(jax.local_devices(backend=platform))
    except RuntimeError as error:
        raise _errors.no_such_device(name or platform, jax.default_backend()) from error
