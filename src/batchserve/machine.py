"""What this process may use of its machine: CPUs and memory, by affinity and cgroups."""

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """Return how many CPUs this process may use: those of its affinity, at most the cgroup's quota.

    A quota of one and a half is two.
    """
    return min([len(os.sched_getaffinity(0)), *_cpu_quotas()])


def process_age_s() -> float:
    """Return how long this process has been there; it began before its first import."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[_START_TIME]) / os.sysconf("SC_CLK_TCK")


_START_TIME = 19
"""Which field after the name it is: proc_pid_stat(5), field 22."""


def memory_bytes(asked: int | None = None) -> int:
    """Return the memory that this process may use: the least of all limits on what is resident.

    Args:
        asked: The user's own limit in bytes, or None.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_memory_limits(), *([asked] if asked else [])])


def _memory_limits() -> Iterator[int]:
    for folder, unified in _folders("memory"):
        yield from _numbers(folder / ("memory.max" if unified else "memory.limit_in_bytes"))[:1]


def _cpu_quotas() -> Iterator[int]:
    for folder, unified in _folders("cpu"):
        names = ["cpu.max"] if unified else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        match [number for name in names for number in _numbers(folder / name)]:
            case [quota_us, period_us] if quota_us > 0:
                yield math.ceil(quota_us / period_us)


def _folders(controller: str) -> Iterator[tuple[Path, bool]]:
    """Give the folders of this process's cgroup and those above it, and whether they are of version 2."""
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:  # not Linux, or no /proc
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            root = _GROUPS / controllers
            here = root / path.lstrip("/")
            for folder in (here, *here.parents):
                if folder.is_relative_to(root):
                    yield folder, not controllers


def _numbers(path: Path) -> list[int]:
    """Return the numbers of a file; none where one is not there, or is "max"."""
    try:
        return [int(text) for text in path.read_text().split()]
    except (OSError, ValueError):
        return []
