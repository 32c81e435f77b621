"""The processes of a background cluster: started, found again, ended.

A process is known by the folder its environment names, which its children inherit. A pid says
less: it may be another process's by now.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "DASK_CONFIG"
"""The environment variable that names the folder: Dask reads its settings there."""

_KILL_TIMEOUT_S = 10
_POLL_S = 0.05


def launch(module: str, arguments: Sequence[str], folder: Path, log: Path) -> int:
    """Start a Python module as a process that outlives this one and its terminal; return its pid."""
    environment: Mapping[str, str] = os.environ | {MARK: str(folder)}
    with log.open("ab") as file:
        process = subprocess.Popen(  # noqa: S603  our own interpreter, and arguments made here
            [sys.executable, "-m", module, *arguments],
            cwd=folder, env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    process.returncode = 0  # nobody will wait for it, and that is no mistake to warn of
    return process.pid


def of(folder: Path) -> dict[int, psutil.Process]:
    """Return the living processes of the cluster in `folder`, by pid."""
    return {process.pid: process for process in psutil.process_iter() if _is_of(process, folder)}


def _is_of(process: psutil.Process, folder: Path) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(folder))
    except psutil.Error:  # gone, or somebody else's
        return False


def end(folder: Path, first: Sequence[int] = (), patience_s: float = 0) -> None:
    """End every process of the cluster in `folder`.

    Args:
        folder: The cluster's.
        first: Pids that are asked to end, one after the other; what is left is killed.
        patience_s: How long each of them may take.
    """
    for pid in first:
        if process := of(folder).get(pid):
            _end([process], folder, signal.SIGTERM, patience_s)
    while left := list(of(folder).values()):  # again: one may have started another meanwhile
        _end(left, folder, signal.SIGKILL, _KILL_TIMEOUT_S)


def _end(ending: Sequence[psutil.Process], folder: Path, number: int, patience_s: float) -> None:
    """Send a signal and wait until none of the processes works any more; reap those started here."""
    for process in ending:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    deadline = time.monotonic() + patience_s
    pids = {process.pid for process in ending}
    while pids & of(folder).keys() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
