"""Memory and cores of this process, with cgroup files of all layouts."""

import dataclasses
import os
from pathlib import Path

import psutil
import pytest

from nlsq_dask.core import resources


def test_cores_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert resources.available_cores() == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert resources.available_cores() == 1


@pytest.mark.skipif(resources._malloc_trim() is None, reason="the C library keeps what is freed")
def test_freed_memory_is_returned_to_the_system():
    # Below 128 kB the C library takes pieces from one range, which the last piece keeps whole.
    pieces = [bytearray(60_000) for _ in range(1000)]
    del pieces[:-1]
    before = psutil.Process().memory_info().rss
    resources.return_freed_memory()
    assert psutil.Process().memory_info().rss < before - 30_000_000


def test_a_library_that_returns_no_memory_is_left_alone(monkeypatch):
    monkeypatch.setattr(resources, "_malloc_trim", lambda: None)
    resources.return_freed_memory()


# cgroups


@dataclasses.dataclass
class FakeProc:
    """A /proc/self and the cgroup file systems that it speaks of, in a temporary directory."""

    tmp: Path

    def membership(self, *lines):
        self._write(self.tmp / "proc" / "cgroup", lines)

    def mounts(self, *lines):
        noise = "23 28 0:21 / /proc rw,nosuid shared:14 - proc proc rw"
        self._write(self.tmp / "proc" / "mountinfo", (noise, *lines))

    def group(self, path, **files):
        for name, text in files.items():
            self._write(self.tmp / path / name.replace("__", "."), [str(text)])

    def rooms(self):
        return sorted(resources.cgroup_rooms(self.tmp / "proc"))

    @staticmethod
    def _write(path, lines):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def proc(tmp_path):
    return FakeProc(tmp_path)


def v2_mount(proc, root="/", name="cg"):
    return f"35 24 0:29 {root} {proc.tmp}/{name} rw,nosuid shared:9 - cgroup2 cgroup2 rw"


def v1_mount(proc, root="/", name="mem"):
    return f"36 24 0:30 {root} {proc.tmp}/{name} rw,nosuid shared:10 - cgroup cgroup rw,memory"


def test_cgroup_v2_limits_of_all_groups_around_the_process(proc):
    proc.membership("0::/batch/job")
    proc.mounts(v2_mount(proc))
    proc.group("cg/batch", memory__max=8_000, memory__high="max", memory__current=3_000)
    proc.group("cg/batch/job", memory__max="max", memory__high=5_000, memory__current=1_000)
    proc.group("cg/batch/job", memory__stat="anon 600\nactive_file 100\ninactive_file 300")
    proc.group("cg/batch/other", memory__max=1, memory__current=0)
    assert proc.rooms() == [5_000 - (1_000 - 300), 8_000 - 3_000]
    assert resources.available_memory(proc.tmp / "proc") == 4_300


def test_cgroup_v1_limits(proc):
    proc.membership("5:cpu,cpuacct:/", "4:blkio,memory:/user/run", "0::/")
    proc.mounts(v1_mount(proc))
    proc.group("mem", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=10)
    proc.group("mem/user/run", memory__limit_in_bytes=7_000, memory__usage_in_bytes=2_500)
    proc.group("mem/user/run", memory__stat="inactive_file 1\ntotal_inactive_file 500")
    assert proc.rooms() == [5_000]
    assert resources.available_memory(proc.tmp / "proc") == 5_000


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/docker/abc", "/docker/abc"),  # the host's path, mounted from the container's group on
        ("/", "/"),  # a namespace of its own
        ("/docker/abc", "/"),  # a path that cannot be seen from inside
        ("/../../slice", "/"),  # a group outside of the namespace
    ],
)
def test_cgroup_of_a_container(proc, path, root):
    proc.membership(f"0::{path}")
    proc.mounts(v2_mount(proc, root))
    proc.group("cg", memory__max=4_000, memory__current=1_500)
    assert proc.rooms() == [2_500]


def test_a_process_that_moves_to_another_cgroup(proc):
    proc.membership("0::/first")
    proc.mounts(v2_mount(proc))
    proc.group("cg/first", memory__max=4_000, memory__current=1_500)
    proc.group("cg/second", memory__max=9_000, memory__current=1_000)
    assert proc.rooms() == [2_500]
    proc.group("cg/first", memory__current=2_000)
    assert proc.rooms() == [2_000]
    proc.membership("0::/second")
    assert proc.rooms() == [8_000]


def test_cgroup_mount_point_with_a_space(proc):
    proc.membership("0::/")
    proc.mounts(v2_mount(proc, name="my\\040cg"))
    proc.group("my cg", memory__max=4_000, memory__current=1_500)
    assert proc.rooms() == [2_500]


def test_cgroup_beyond_its_limit_has_no_room(proc):
    proc.membership("0::/")
    proc.mounts(v2_mount(proc))
    proc.group("cg", memory__max=4_000, memory__current=4_500)
    assert proc.rooms() == [0]


def test_memory_of_the_machine_as_psutil_tells(tmp_path, monkeypatch):
    lines = ["MemTotal: 900 kB", "MemFree: 100 kB", "MemAvailable:   300 kB", "Buffers: 1 kB"]
    memory = tmp_path / "meminfo"
    memory.write_text("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr(resources, "MEMORY_INFO", str(memory))
    assert resources.available_memory(tmp_path) == 300 << 10
    told = psutil.virtual_memory()._replace(available=77)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: told)
    memory.write_text(memory.read_text().replace("300", "901"))  # more than there is
    assert resources.available_memory(tmp_path) == 77
    memory.unlink()
    assert resources.available_memory(tmp_path) == 77


def test_no_cgroups(proc):
    assert proc.rooms() == []
    proc.membership("0::/")
    proc.mounts("31 23 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu")
    assert proc.rooms() == []
    machine = psutil.virtual_memory()
    assert 0 < resources.available_memory(proc.tmp / "proc") <= machine.total
