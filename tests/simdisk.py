"""A disk in memory that remembers what a kill or a power loss would leave of it."""

import errno
import hashlib
import io
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from batchserve.storage import Disk

ROOT = Path("/simulated")
LOSSES = 6
"""Kinds of power loss that every moment is tried with; more may be asked for."""

Change = tuple[tuple[int, str, int | None], ...]
"""In which folder, which name, names what from now on; kept or lost as a whole, as journals do it."""
_Folders = dict[int, dict[str, int]]


class _Open(io.RawIOBase):
    """A file that is being written: its bytes are in the cache until it is synced."""

    def __init__(self, disk: "SimDisk", node: int) -> None:
        self._disk, self.node = disk, node

    def write(self, data: Any) -> int:
        self._disk.effect()
        self._disk.cached[self.node] += bytes(data)
        return len(data)


class SimDisk(Disk):
    """A file system: what processes see, and what of it a power loss would leave."""

    def __init__(self) -> None:
        self.cached: dict[int, bytes] = {}
        self.synced: dict[int, bytes] = {}
        self.folders: _Folders = {0: {}}
        self.durable: _Folders = {0: {}}
        self.pending: list[Change] = []
        self.nodes = 0
        self.watcher: Callable[[], None] | None = None
        """Called before every effect."""

    def effect(self) -> None:
        """Give the watcher the moment before an effect."""
        if self.watcher:
            self.watcher()

    def node(self, path: Path) -> int | None:
        """Return what `path` names, or None."""
        return _found(self.folders, path)

    def there(self, path: Path) -> int:
        """Return what `path` names."""
        node = self.node(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return node

    def change(self, *names: tuple[Path, int | None]) -> None:
        """Let names name something else, in one step."""
        done = tuple((self.there(path.parent), path.name, node) for path, node in names)
        _apply(self.folders, done)
        self.pending.append(done)

    def _new(self) -> int:
        self.nodes += 1
        return self.nodes

    def create(self, path: Path) -> Any:
        self.effect()
        if self.node(path) is not None:
            raise FileExistsError(path)
        node = self._new()
        self.cached[node] = b""
        self.change((path, node))
        return _Open(self, node)

    def sync(self, file: Any) -> None:
        self.effect()
        self.synced[file.node] = self.cached[file.node]

    def sync_file(self, path: Path) -> None:
        self.effect()
        node = self.there(path)
        self.synced[node] = self.cached[node]

    def sync_dir(self, path: Path) -> None:
        self.effect()
        folder = self.there(path)
        for change in [c for c in self.pending if any(where == folder for where, _, _ in c)]:
            _apply(self.durable, change)
            self.pending.remove(change)

    def link(self, existing: Path, path: Path) -> None:
        self.effect()
        node = self.there(existing)
        if self.node(path) is not None:
            raise FileExistsError(path)
        self.change((path, node))

    def rename(self, old: Path, new: Path) -> None:
        self.effect()
        node = self.there(old)
        if self.folders.get(self.node(new) or -1):
            raise OSError(errno.ENOTEMPTY, "not empty", str(new))
        self.change((old, None), (new, node))

    def exchange(self, first: Path, second: Path) -> None:
        self.effect()
        self.change((first, self.there(second)), (second, self.there(first)))

    def make_dir(self, path: Path) -> None:
        self.effect()
        if self.node(path) is None:
            node = self._new()
            self.folders[node], self.durable[node] = {}, {}
            self.change((path, node))

    def unlink(self, path: Path) -> None:
        self.effect()
        self.there(path)
        self.change((path, None))

    def remove_dir(self, path: Path) -> None:
        self.effect()
        if self.folders[self.there(path)]:
            raise OSError(errno.ENOTEMPTY, "not empty", str(path))
        self.change((path, None))

    def mode(self, path: Path) -> int | None:
        return None if self.node(path) is None else 0o644

    def set_mode(self, path: Path, mode: int) -> None:
        self.effect()

    def read(self, path: Path) -> bytes:
        return self.cached[self.there(path)]

    def head(self, path: Path, size_bytes: int) -> bytes:
        return self.read(path)[:size_bytes]

    def size_bytes(self, path: Path) -> int | None:
        node = self.node(path)
        return None if node is None else len(self.cached.get(node, b""))

    def is_dir(self, path: Path) -> bool:
        return self.node(path) in self.folders

    def names(self, folder: Path) -> list[str]:
        node = self.node(folder)
        return sorted(self.folders.get(node, {})) if node is not None else []

    def sha256(self, path: Path) -> str:
        return hashlib.sha256(self.read(path)).hexdigest()

    def free_bytes(self, folder: Path) -> int:
        return 1 << 40

    # -- what a crash leaves

    def copy(self) -> "SimDisk":
        """Return what another process would see now: nothing is lost when one is killed."""
        new = SimDisk()
        new.cached, new.synced, new.nodes = dict(self.cached), dict(self.synced), self.nodes
        new.folders = {node: dict(names) for node, names in self.folders.items()}
        new.durable = {node: dict(names) for node, names in self.durable.items()}
        new.pending = list(self.pending)
        return new

    def after_power_loss(self, loss: int) -> "SimDisk":
        """Return what is left when the power goes: of names and bytes not synced all, some or none.

        Args:
            loss: 0 loses all; 1 keeps names and no bytes, 2 names and half of the bytes; from 3 on
                chance decides, name by name.
        """
        chance = random.Random(loss * 7919 + len(self.pending))
        new = self.copy()
        new.folders = {node: dict(names) for node, names in self.durable.items()}
        for change in self.pending:
            if loss in {1, 2} or (loss > 2 and chance.random() < 0.5):
                _apply(new.folders, change)
        for node, data in self.cached.items():
            if self.synced.get(node) != data:
                share = {0: 0.0, 1: 0.0, 2: 0.5}.get(loss) if loss < 3 else chance.random()
                new.cached[node] = data[: int(len(data) * share)] if share else self.synced.get(node, b"")
        return new.settled()

    def settled(self) -> "SimDisk":
        """Let everything be on the disk that can be seen; return this disk."""
        self.durable = {node: dict(names) for node, names in self.folders.items()}
        self.synced, self.pending = dict(self.cached), []
        return self

    def survives(self, path: Path) -> bool:
        """Whether a power loss at this moment would leave the file `path`, to the last byte."""
        node = _found(self.durable, path)
        return node is not None and node == self.node(path) and self.synced.get(node) == self.cached[node]

    def seen(self) -> tuple[Any, ...]:
        """Return everything that decides what happens next, without the numbers of nodes."""
        numbers: dict[int, int] = {}
        return tuple(self._view(0, numbers)), bool(self.pending)

    def _view(self, folder: int, numbers: dict[int, int]) -> Iterator[tuple[Any, ...]]:
        for name, node in sorted(self.folders[folder].items()):
            if node in self.folders:
                yield name, tuple(self._view(node, numbers))
            else:
                data = self.cached[node]
                yield name, numbers.setdefault(node, len(numbers)), data, self.synced.get(node) == data


def _found(folders: _Folders, path: Path) -> int | None:
    node: int | None = 0
    for name in str(path).split("/")[2:]:  # below ROOT
        names = folders.get(node) if node is not None else None
        node = names.get(name) if names is not None else None
    return node


def _apply(folders: _Folders, change: Sequence[tuple[int, str, int | None]]) -> None:
    for folder, name, node in change:
        names = folders.setdefault(folder, {})
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node
