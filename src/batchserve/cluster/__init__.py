"""Open, use and close a Dask cluster. The configuration keys keep it from hanging or lying.

A job that wants the dashboard and has no cluster gets one of threads of this process, under a
scheduler in this process.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchserve.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client

_SILENT = 100
_LOOPBACK = "127.0.0.1:0"
_CONNECT_TIMEOUT_S = 10
NO_WORKERS_TIMEOUT_S = 60
"""A cluster that has had no worker for so long will not get one by itself."""

SETTINGS = {
    # Two deaths of one worker within 15 s would close its nanny for good, and then nothing
    # would ever happen again (distributed deploy/spec.py).
    "distributed.deploy.lost-worker-timeout": "1h",
    "distributed.scheduler.no-workers-timeout": f"{NO_WORKERS_TIMEOUT_S}s",
    # One task per worker at a time and no silent retries: blame stays exact.
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.worker-saturation": 1.0,
    # A model is memory Dask cannot manage: pausing or spilling would only hang the job.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.gil.enabled": False,
    # Partitions must stay what the plan says they are.
    "optimization.tune.active": False,
}


@dataclass(frozen=True)
class Engine:
    """A client of a running cluster."""

    client: "Client"
    workers: int
    """Partitions it scores at once."""
    dashboard: str = ""
    """Address of the dashboard, if this job serves one."""
    notes: tuple[str, ...] = ()
    """In words: how a cluster of others is set otherwise than ours."""


def active_client() -> "Client | None":
    """Return the caller's own `distributed` client, without importing Dask to find none."""
    distributed = sys.modules.get("distributed.client")
    if distributed is None:
        return None
    client: Client | None = distributed._get_global_client()  # noqa: SLF001  `get_client` would raise
    return client if client is not None and not client.asynchronous else None


@contextmanager
def opened(given: Any, scheduler: str | None, workers: int, *, dashboard: bool) -> Iterator[Engine]:
    """Use the cluster given, else the scheduler, else the active client, else open our own.

    Only what was opened here is closed.

    Args:
        given: A client or cluster of the caller, or None.
        scheduler: Address of a running scheduler, or None.
        workers: Threads of our own cluster.
        dashboard: Serve Dask's dashboard on loopback, with our own cluster.

    Raises:
        ClusterError: The cluster cannot be reached.
    """
    import dask
    import distributed  # noqa: F401  inside `set`, leaving it would take distributed's defaults along

    with dask.config.set(SETTINGS):
        if given is None and scheduler is None and (client := active_client()):
            yield _engine(client)
        elif given is not None and hasattr(given, "submit"):
            yield _engine(given)
        elif given is not None or scheduler is not None:
            with connected(given if given is not None else scheduler) as client:
                yield _engine(client)
        else:
            with _own(workers, dashboard=dashboard) as engine:
                yield engine


def _engine(client: "Client") -> Engine:
    workers = sum(client.nthreads().values())
    if not workers:
        raise ClusterError(f"{client.scheduler.address}: has no workers", "start some, then run it again")
    retries: int = client.run_on_scheduler(allowed_failures)
    note = f"the scheduler allows {retries} failures: rows that kill a worker will kill {retries + 1}, twice"
    return Engine(client, workers, notes=(note,) if retries else ())


def allowed_failures(dask_scheduler: Any) -> int:
    """Return how many dead workers a task may have had before its scheduler gives it up."""
    return int(dask_scheduler.allowed_failures)


@contextmanager
def connected(address: Any) -> Iterator["Client"]:
    """Connect to a scheduler, or to a cluster object; what distributed logs meanwhile is dropped.

    All that it could say is in our own errors.

    Raises:
        ClusterError: Nobody answers.
    """
    from distributed import Client
    from distributed.utils import silence_logging_cmgr

    try:
        client = Client(address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        reason = re.sub(r"[^\s/@]+@", "***@", str(error))  # it repeats the address, without tcp://
        message = f"{address}: no Dask scheduler answers ({reason})"
        raise ClusterError(message, "check --scheduler; it looks like tcp://host:8786") from error
    with silence_logging_cmgr(_SILENT), silence_logging_cmgr(_SILENT, "distributed.client"), client:
        yield client


@contextmanager
def _own(workers: int, *, dashboard: bool) -> Iterator[Engine]:
    """Open threads under a scheduler in this process, listening on loopback alone.

    `LocalCluster(processes=False)` would open three HTTP ports to the network.
    """
    from distributed import Client, Scheduler, SpecCluster, Worker

    common = {"protocol": "inproc://", "dashboard": False, "dashboard_address": _LOOPBACK}
    cluster = SpecCluster(
        scheduler={"cls": Scheduler, "options": {**common, "dashboard": dashboard}},
        workers={0: {"cls": Worker, "options": {**common, "nthreads": workers, "memory_limit": 0}}},
        silence_logs=50,
    )
    with cluster, Client(cluster, set_as_default=False) as client:
        port = cluster.scheduler.http_server.port
        url = f"http://127.0.0.1:{port}/status" if dashboard else ""
        yield Engine(client, workers, url)


@contextmanager
def translated() -> Iterator[None]:
    """Turn Dask's own failures into ClusterError; errors of ours pass through."""
    from distributed import CancelledError
    from distributed.client import ClosedClientError
    from distributed.comm import CommClosedError
    from distributed.scheduler import NoWorkerError

    try:
        yield
    except NoWorkerError as error:
        raise lost("it has no workers any more") from error
    except (CancelledError, ClosedClientError, CommClosedError) as error:
        raise lost("its scheduler is gone") from error


def lost(reason: str) -> ClusterError:
    """Build the error of a job whose cluster is lost."""
    hint = "start the cluster again, then run the same command again: finished parts are kept"
    return ClusterError(f"the cluster was lost: {reason}", hint)
