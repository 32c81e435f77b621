"""Background clusters with a name: a scheduler and worker processes of this machine.

They are distributed's own commands, with our settings, and listen on loopback alone. That keeps
other machines out, not other users of this one: whoever can connect can run code as the owner.
What is known of a cluster stands in a folder of its own below the user's state folder.
"""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from batchserve import machine, storage
from batchserve.cluster import SETTINGS, connected, processes
from batchserve.errors import ClusterError, UsageError, did_you_mean
from batchserve.storage import translated

DEFAULT_NAME = "default"
LEAST_MEMORY = 64 << 20
"""A worker that has imported what it needs is larger than this."""

_START_TIMEOUT_S = 60
_START_TIMEOUT_PER_WORKER_S = 10
_STOP_TIMEOUT_S = 12
_LOG_LINES = 8
_POLL_S = 0.1
_LOOPBACK = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
_TOLD = "scheduler.json"
"""Where the scheduler writes its address, and the workers read it."""


class Cluster(BaseModel, frozen=True):
    """A background cluster, as its folder tells."""

    name: str
    address: str
    """Of the scheduler."""
    dashboard: str
    workers: int
    memory_limit: int
    """Bytes a worker may use before it is killed and started again."""
    scheduler_pid: int
    workers_pid: int
    """Of the process that starts the workers, and starts them again when they die."""

    @property
    def folder(self) -> Path:
        """Where its state, logs and the workers' files are."""
        return folder_of(self.name)

    @property
    def alive(self) -> bool:
        """Whether its two main processes run."""
        return {self.scheduler_pid, self.workers_pid} <= processes.of(self.folder).keys()


def folder_of(name: str) -> Path:
    """Return the folder of cluster `name`, there or not.

    Raises:
        UsageError: It cannot be a name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        hint = "take letters, digits, dots, hyphens and underscores, at most 64"
        raise UsageError(f"{name!r}: cannot be the name of a cluster", hint)
    return _home() / name


def _home() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state).absolute() / "batchserve" / "clusters"


def address(name: str) -> str:
    """Return the address of the scheduler of cluster `name`.

    Raises:
        ClusterError: There is none, or it is dead.
    """
    return find(name).address


def find(name: str) -> Cluster:
    """Return the running cluster `name`.

    Raises:
        ClusterError: There is none, or it is dead.
    """
    if not folder_of(name).is_dir():
        raise _unknown(name)
    found = _stored(name)
    if found is None or not found.alive:
        hint = f"start it again: batchserve cluster start{_flag(name)}"
        raise ClusterError(f"{name}: this cluster has died", hint)
    return found


def _unknown(name: str) -> ClusterError:
    others = [path.name for path in _home().iterdir()] if _home().is_dir() else []
    hint = did_you_mean(name, others) or f"start it: batchserve cluster start{_flag(name)}"
    return ClusterError(f"{name}: no such cluster", hint)


def _flag(name: str) -> str:
    return "" if name == DEFAULT_NAME else f" --name {name}"


def _stored(name: str) -> Cluster | None:
    try:
        return Cluster.model_validate_json((folder_of(name) / "cluster.json").read_bytes())
    except (OSError, ValidationError):  # cut while it started
        return None


def start(name: str = DEFAULT_NAME, workers: int | None = None, memory_limit: int | None = None) -> Cluster:
    """Start a background cluster and wait until its workers are connected.

    Args:
        name: A new name; what is left of a dead cluster of that name is removed.
        workers: How many processes, of one thread each; the usable CPUs by default.
        memory_limit: Bytes that each may use; its share of what the system allows by default.

    Raises:
        UsageError: The name is taken, or a value is impossible.
        ClusterError: It did not start; nothing is left running.
    """
    workers = workers or machine.usable_cpus()
    limit = memory_limit or _share(workers)
    if limit < LEAST_MEMORY:
        raise UsageError(f"--memory-limit: {limit:,} bytes are too few for a worker", "say 512MiB or more")
    folder = folder_of(name)
    with _alone():
        if (before := _stored(name)) and before.alive:
            hint = f"use it: --cluster {name}; or end it: batchserve cluster stop{_flag(name)}"
            raise UsageError(f"{name}: is running already, at {before.address}", hint)
        _remove(folder)
        try:
            return _started(name, folder, workers, limit)
        except BaseException:
            _remove(folder)
            raise


def _share(workers: int) -> int:
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT // workers)


@contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other command starts or stops a cluster of this user."""
    home = _home()
    with translated(home):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    processes.end(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _started(name: str, folder: Path, workers: int, limit: int) -> Cluster:
    with translated(folder):
        folder.mkdir(mode=0o700)
        (folder / "batchserve.yaml").write_text(json.dumps(_nested(SETTINGS)))  # JSON is YAML too
    pids = _launched(name, folder, workers, limit)
    facts = _when_connected(name, folder, workers, pids)
    made = Cluster(
        name=name, address=facts["address"], workers=workers, memory_limit=limit,
        dashboard=f"http://127.0.0.1:{facts['services']['dashboard']}/status",
        scheduler_pid=pids[0], workers_pid=pids[1],
    )  # fmt: skip
    with translated(folder):
        storage.write_durable(folder / "cluster.json", made.model_dump_json(indent=1).encode())
    return made


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into tables of tables, as Dask's config files have them."""
    import dask

    tables: dict[str, Any] = {}
    dask.config.set(settings, config=tables)
    return tables


def _launched(name: str, folder: Path, workers: int, limit: int) -> tuple[int, int]:
    """Start the two main processes; return their pids."""
    common = (*_LOOPBACK, "--scheduler-file", str(folder / _TOLD))
    scheduler = (*common, "--port", "0")
    nannies = (
        *common, "--no-dashboard", "--name", name, "--nworkers", str(workers), "--nthreads", "1",
        "--memory-limit", str(limit), "--local-directory", str(folder),
    )  # fmt: skip
    return (
        processes.launch("distributed.cli.dask_scheduler", scheduler, folder, folder / "scheduler.log"),
        processes.launch("distributed.cli.dask_worker", nannies, folder, folder / "workers.log"),
    )


def _when_connected(name: str, folder: Path, workers: int, pids: tuple[int, int]) -> dict[str, Any]:
    """Wait until every worker is connected; return what the scheduler tells of itself."""
    deadline = time.monotonic() + _START_TIMEOUT_S + workers * _START_TIMEOUT_PER_WORKER_S

    def wait_until(done: Callable[[], bool]) -> None:
        while not done():
            if not processes.of(folder).keys() >= set(pids):
                raise _not_started(name, folder, "a process of it ended")
            if time.monotonic() > deadline:
                raise _not_started(name, folder, "it takes too long")
            time.sleep(_POLL_S)

    told = folder / _TOLD
    wait_until(lambda: told.exists() and told.read_text().endswith("}"))
    facts: dict[str, Any] = json.loads(told.read_text())
    with connected(facts["address"]) as client:
        wait_until(lambda: len(client.nthreads()) >= workers)
    return facts


def _not_started(name: str, folder: Path, reason: str) -> ClusterError:
    said = "\n".join(f"  {line}" for log in sorted(folder.glob("*.log")) for line in _tail(log))
    return ClusterError(f"{name}: did not start, {reason}; its logs end so:\n{said}", "see the log above")


def _tail(log: Path) -> list[str]:
    """Return the errors a log names, which may stand far above its end, and its last lines."""
    lines = log.read_text(errors="replace").splitlines()
    named = [line for line in lines[:-_LOG_LINES] if re.match(r"[\w.]+(Error|Exception): ", line)]
    return [*dict.fromkeys(named), *lines[-_LOG_LINES:]]


def stop(name: str = DEFAULT_NAME) -> None:
    """End a background cluster, dead or alive, and remove its folder.

    Raises:
        ClusterError: There is none of that name.
    """
    with _alone():
        folder = folder_of(name)
        if not folder.is_dir():
            raise _unknown(name)
        if found := _stored(name):
            # Workers that leave first are not taken for dead.
            processes.end(folder, (found.workers_pid, found.scheduler_pid), _STOP_TIMEOUT_S)
        _remove(folder)


def status(name: str = DEFAULT_NAME) -> dict[str, str]:
    """Return in words how a background cluster is.

    Raises:
        ClusterError: There is none, or it is dead.
    """
    found = find(name)
    with connected(found.address) as client:
        workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
        running = sum(len(keys) for keys in client.processing().values())
    pids = sorted(processes.of(found.folder))
    used = sum(worker["metrics"]["memory"] for worker in workers.values())
    return {
        "scheduler": found.address, "dashboard": found.dashboard,
        "workers": f"{len(workers)} of {found.workers} alive", "tasks": f"{running} running",
        "memory": f"{used >> 20:,} MiB used, {found.memory_limit >> 20:,} MiB allowed per worker",
        "pids": " ".join(map(str, pids)), "logs": str(found.folder),
    }  # fmt: skip
