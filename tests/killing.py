"""What tests of deaths share: workers that note what they score and die when told, and how to kill."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from batchserve.cluster import named, processes
from batchserve.cluster.named import Cluster

_PRELOAD = """
import json, os, time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from batchserve import outputs, scoring

if not hasattr(scoring, "honest"):  # Dask runs this more than once
    scoring.honest = scoring.score_partition
home = Path({home!r})


def scripted(partition, recipe, workspace, **more):
    with (home / "attempts").open("a") as file:
        file.write(f"{{partition.index}} {{os.getpid()}}\\n")
    script = json.loads((home / "script.json").read_text())
    time.sleep(script["pause_s"])
    if partition.index in script["deadly"]:
        if ballast := script["ballast"]:
            held = b"x" * ballast
            time.sleep(30)
        os.kill(os.getpid(), script["signal"])
        time.sleep(30)
    with ThreadPoolExecutor() as pool:
        score = partial(scoring.honest, partition, recipe, workspace, **more)
        attempts = [pool.submit(score) for _ in range(script["times"])]
    return attempts[-1].result()


scoring.score_partition = scripted
"""


class Script:
    """What the workers of a cluster do besides scoring, and what they noted."""

    def __init__(self, home: Path) -> None:
        self._home = home
        home.mkdir()
        (home / "preload.py").write_text(_PRELOAD.format(home=str(home)))
        self.play()

    @property
    def environment(self) -> dict[str, str]:
        """What a cluster must be started with to follow this script."""
        return {"DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([str(self._home / "preload.py")])}

    def play(
        self, *, pause_s: float = 0, deadly: tuple[int, ...] = (), number: int = signal.SIGKILL,
        ballast: int = 0, times: int = 1,
    ) -> None:  # fmt: skip
        """Forget what was noted; from now on let every partition take `pause_s`.

        Args:
            pause_s: Before a partition is scored.
            deadly: Partitions that kill their worker.
            number: With this signal,
            ballast: or by holding so many bytes.
            times: How many attempts score each partition at the same moment.
        """
        script = {
            "pause_s": pause_s, "deadly": deadly, "signal": number, "ballast": ballast, "times": times,
        }  # fmt: skip
        new = self._home / "new.json"
        new.write_text(json.dumps(script))
        new.replace(self._home / "script.json")
        (self._home / "attempts").write_text("")

    @property
    def attempts(self) -> Counter[int]:
        """How often each partition was begun: asked for again when it is committed, it is not."""
        return Counter(index for index, _ in self._noted())

    def scorer(self) -> tuple[int, int]:
        """Return the partition begun last, and the pid of its worker."""
        return self._noted()[-1]

    def _noted(self) -> list[tuple[int, int]]:
        lines = (self._home / "attempts").read_text().splitlines()
        return [(int(index), int(pid)) for index, pid in map(str.split, lines)]


@contextmanager
def scripted_cluster(
    home: Path, workers: int, memory_limit: int | None = None, **environment: str
) -> Iterator[tuple[Cluster, Script]]:
    """Start a named cluster whose workers follow a script; whatever becomes of it, nothing is left."""
    script = Script(home / "script")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(home / "state"))
        for name, value in (script.environment | environment).items():
            patch.setenv(name, value)
        cluster = named.start("deaths", workers, memory_limit)
        try:
            yield cluster, script
        finally:
            processes.end(cluster.folder)


def until(condition: Callable[[], Any], timeout_s: float = 60) -> None:
    """Wait until something is so; a test that waits in vain fails."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that is there."""
    os.kill(pid, number)


def works(pid: int) -> bool:
    """Whether a process does more than wait for an init process to take note of its end."""
    return bool(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


def listening(pids: set[int]) -> set[str]:
    """Return the addresses that processes listen on."""
    connections = [c for pid in pids for c in psutil.Process(pid).net_connections("inet")]
    return {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
