"""Memory, processor cores and vector units that this process may use.

The free memory of a process is the smallest of the machine's available memory and of the room under
the limit of each control group (cgroup) around the process. Containers, batch systems and
``systemd-run`` set their limits as cgroups, which ``psutil`` does not read.

Files and their meaning: Linux kernel documentation, "Control Group v2" (``memory.max``,
``memory.high``, ``memory.current``, ``memory.stat``) and "Memory Resource Controller" (v1:
``memory.limit_in_bytes``, ``memory.usage_in_bytes``); the manual pages cgroups(7) and
proc_pid_mountinfo(5) for how a process finds its own.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

PROC = Path("/proc/self")
CPU_INFO = "/proc/cpuinfo"
MEMORY_INFO = "/proc/meminfo"

# The lines of MEMORY_INFO that tell the memory, and what programs can still take, in KiB
# (proc_meminfo(5)).
MEMORY_LINES = re.compile(rb"^MemTotal: +(\d+) kB\n(?:.*\n)?MemAvailable: +(\d+) kB\n")

# Bytes of the first reading of a file. The files here have some kilobytes.
FIRST_READ = 1 << 16

# Bits of the vectors that XLA compiles for by itself, and of the widest vectors of any CPU that it
# compiles for (AVX-512). XLA's option: ``xla_cpu_prefer_vector_width``, 256 by default (xla.proto).
XLA_VECTOR_BITS = 256
WIDE_VECTOR_BITS = 512
VECTOR_OPTION = "xla_cpu_prefer_vector_width"

# Version 1 writes "no limit" as the last page below 2**63 bytes.
NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class _Version:
    """Names of one cgroup version: files in bytes, and the key of ``memory.stat``."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: str


_VERSIONS = {
    "cgroup2": _Version(("memory.max", "memory.high"), "memory.current", "inactive_file"),
    "cgroup": _Version(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
}


def available_memory(proc: Path = PROC) -> int:
    """Memory that this process can still take, in bytes.

    Linux takes 0.02 ms for each file that tells the memory.

    Parameters
    ----------
    proc : Path
        The process's directory in the proc file system.
    """
    return min([_machine_memory(), *cgroup_rooms(proc)])


def _machine_memory() -> int:
    """Memory that the machine can still give, in bytes.

    ``psutil`` computes twenty other numbers from the same file.
    """
    found = MEMORY_LINES.match(_content(MEMORY_INFO))
    if found and int(found[2]) <= int(found[1]):  # a container may see the memory of its host
        return int(found[2]) << 10
    import psutil  # where Linux does not tell the numbers

    return int(psutil.virtual_memory().available)


def cgroup_rooms(proc: Path = PROC) -> Iterator[int]:
    """Free bytes under each memory limit of the process's cgroups, of either version.

    A limit holds for all groups below it. Therefore every group counts, from the process's own up
    to the root. Page cache that was not used lately counts as free, since the kernel releases it
    before it refuses memory. Container runtimes report the same "working set".

    Parameters
    ----------
    proc : Path
        The process's directory in the proc file system.
    """
    for files in _groups(proc, _content(f"{proc}/cgroup")):
        yield from files.rooms()


def return_freed_memory() -> None:
    """Return to the system the memory that this process has freed and its C library keeps.

    After XLA has compiled the program that fits series, 85 to 100 MB are free, in pieces between
    pieces in use. The GNU C library keeps such pieces resident until ``malloc_trim(3)`` is called,
    which takes some 30 ms. Other C libraries have no such function: then nothing is done.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """The function of the C library; None where there is none."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    found: Callable[[int], int] | None = getattr(library, "malloc_trim", None)
    return found


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def vector_bits() -> int:
    """Bits of the vectors for which kernels may be compiled in this process.

    512 on a CPU with AVX-512. 256 otherwise, and where ``XLA_FLAGS`` says a width.
    """
    chosen = VECTOR_OPTION in os.environ.get("XLA_FLAGS", "")
    return WIDE_VECTOR_BITS if _has_wide_vectors() and not chosen else XLA_VECTOR_BITS


@cache
def _has_wide_vectors() -> bool:
    """Whether the CPU has AVX-512; False on other systems than Linux."""
    flags = (line for line in _lines(_content(CPU_INFO)) if line.startswith("flags"))
    return "avx512f" in next(flags, "").split()


def gpu_memory() -> int | None:
    """Free memory of JAX's first GPU, in bytes; None if JAX is not loaded or has no GPU.

    This function does not import JAX: only a program that has loaded JAX computes on a GPU.
    """
    jax = sys.modules.get("jax")
    if jax is None:
        return None
    try:
        devices = jax.local_devices(backend="gpu")
    except RuntimeError:  # JAX has no such backend
        return None
    return free_bytes(devices[0])


def free_bytes(device: Any) -> int | None:
    """Free memory of a device of JAX, in bytes; None where JAX does not tell."""
    stats = device.memory_stats()
    return None if stats is None else int(stats["bytes_limit"] - stats["bytes_in_use"])


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of a memory cgroup, and the pattern of its reclaimable memory."""

    limits: tuple[str, ...]
    usage: str
    stat: str
    reclaimable: re.Pattern[bytes]

    @classmethod
    def of(cls, directory: Path, version: _Version) -> _Files:
        limits = tuple(f"{directory}/{name}" for name in version.limits)
        pattern = re.compile(rf"^{version.reclaimable} (\d+)$".encode(), re.MULTILINE)
        return cls(limits, f"{directory}/{version.usage}", f"{directory}/memory.stat", pattern)

    def rooms(self) -> list[int]:
        """Free bytes under each limit of the group."""
        numbers = [_number(path) for path in self.limits]
        limits = [limit for limit in numbers if limit is not None and limit < NO_LIMIT]
        used = _number(self.usage) if limits else None
        if used is None:
            return []
        reclaimable = self.reclaimable.search(_content(self.stat))
        used = max(used - (int(reclaimable[1]) if reclaimable else 0), 0)
        return [max(limit - used, 0) for limit in limits]


@cache
def _groups(proc: Path, membership: bytes) -> tuple[_Files, ...]:
    """Files of the memory cgroups around a process in the groups of `membership`.

    Looked up once for each membership: mounts do not change during a process, but its groups may.
    """
    paths = _memberships(_lines(membership))
    return tuple(
        _Files.of(directory, _VERSIONS[kind])
        for kind, root, mount in _memory_mounts(proc)
        if kind in paths
        for directory in _directories(paths[kind], root, mount)
    )


def _memberships(lines: Iterable[str]) -> dict[str, str]:
    """Path of the process's memory cgroup in each hierarchy, by the hierarchy's file system."""
    found = {}
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            found["cgroup2"] = path
        elif "memory" in controllers.split(","):
            found["cgroup"] = path
    return found


def _memory_mounts(proc: Path) -> Iterator[tuple[str, str, Path]]:
    """File system, root within the hierarchy, and mount point of every memory hierarchy."""
    for line in _lines(_content(f"{proc}/mountinfo")):
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            root, mount = before.split(" ")[3:5]
            yield kind, _unescape(root), Path(_unescape(mount))


def _directories(path: str, root: str, mount: Path) -> Iterator[Path]:
    """Directories of a cgroup and of all cgroups around it, as far as they are mounted.

    In a container the process's path may be the host's path. Only the part below the mount's root
    is visible then. The mount point stands for a group that is not visible.
    """
    full, top = PurePosixPath(path), PurePosixPath(root)
    inner = full.relative_to(top) if full.is_relative_to(top) else full.relative_to("/")
    directory = mount / inner
    if ".." in inner.parts or not directory.is_dir():
        directory = mount
    while True:
        yield directory
        if directory == mount:
            return
        directory = directory.parent


def _number(path: str) -> int | None:
    """The number in a file; None for no file, or for no limit ("max")."""
    content = _content(path).strip()
    return int(content) if content.isdigit() else None


def _lines(content: bytes) -> list[str]:
    return os.fsdecode(content).splitlines()


def _content(path: str) -> bytes:
    """Content of a file of the kernel; empty where it cannot be read.

    Read by the calls of the operating system: a fit reads some ten files, and Python's files cost
    several times as much as the reading.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # another system than Linux, or a file without read permission
        return b""
    try:
        parts = [os.read(descriptor, FIRST_READ)]
        while parts[-1]:
            parts.append(os.read(descriptor, FIRST_READ))
    except OSError:
        return b""
    finally:
        os.close(descriptor)
    return b"".join(parts)


def _unescape(text: str) -> str:
    r"""Undo the octal escapes of mountinfo, such as ``\040`` for a space."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
