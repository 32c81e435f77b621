"""Workers that died while they scored, and what killed them, as far as their cluster knows."""

import re
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Client, KilledWorker

_TRIES, _PAUSE_S = 40, 0.3
_LOG_LINES = 200


@dataclass(frozen=True)
class Death:
    """A worker that died with a task."""

    worker: str
    """Its address."""
    pid: int
    watched: bool
    """Whether a nanny saw it end."""

    def __str__(self) -> str:
        return f"worker {self.worker} died"


def met(error: "KilledWorker") -> Death:
    """Return the death that Dask tells of."""
    worker = error.last_worker
    return Death(worker.address, worker.pid, watched=bool(worker.nanny))


def cause(client: "Client", death: Death) -> tuple[str, bool]:
    """Return in words what ended a worker, and whether it was for want of memory.

    Its nanny knows: it ends a worker that is over its limit, and logs how any other ended. It
    may log that a little later than the scheduler misses the worker. SIGKILL counts as memory,
    since that is how the kernel ends a process when there is none left.
    """
    for _ in range(_TRIES if death.watched else 0):
        if end := _end(client, death):
            over = death.worker in {
                event["worker"] for _, event in client.get_events("worker-restart-memory")
            }
            return ("over its memory limit", True) if over else (end, end.endswith(signal.SIGKILL.name))
        time.sleep(_PAUSE_S)
    return "for a reason nobody logged", False


def _end(client: "Client", death: Death) -> str:
    """Return how the nanny says the process ended, or an empty text."""
    logs = client.get_worker_logs(n=_LOG_LINES, nanny=True)
    lines = "\n".join(text for log in logs.values() for _, text in log)
    found = re.search(rf"Worker process {death.pid} (was killed by signal|exited with status) (\d+)", lines)
    if not found:
        return ""
    if found[1].startswith("exited"):
        return f"with exit status {found[2]}"
    return f"killed by {signal.Signals(int(found[2])).name}"
