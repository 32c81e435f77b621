"""Single bits flipped in every kind of file that a job or its output has: who notices?"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np

import batchserve as bs
import models
from batchserve import commit, model, scoring, verify, workspace
from batchserve.errors import BatchserveError

ROWS = 6_000
KINDS = ("part", "receipt of a part", "plan", "model", "output", "its receipt", "dataset", "its manifest")
_END_BYTES = 2_000
"""Half of the flips are so near the end: footers, and what a short file has most of."""


@dataclass
class Figures:
    """What became of the flips."""

    noticed: Counter[str] = field(default_factory=Counter)
    """By kind of file."""
    missed: list[str] = field(default_factory=list)
    """File and position of each that nobody noticed."""

    def facts(self) -> dict[str, str | int]:
        """Return the figures for a table."""
        return {"bits flipped": sum(self.noticed.values()) + len(self.missed), "unnoticed": len(self.missed)}


def material(folder: Path) -> Path:
    """Make an input of about twelve partitions and its model."""
    models.wide(folder)
    numbers = np.random.default_rng(3).random((ROWS, 4))
    rows = [f"{i}," + ",".join(f"{x:.6f}" for x in row) for i, row in enumerate(numbers)]
    (folder / "in.csv").write_text("row,a,b,c,d\n" + "\n".join(rows) + "\n")
    return folder


def sweep(home: Path, count: int, seed: int) -> Figures:
    """Flip one bit at a time, each kind of file in turn, and see that it is noticed.

    A part, its receipt, the plan and the model have to be noticed before publishing; an output and
    what stands beside it, by `verify` from the bytes alone.

    Args:
        home: A folder with `in.csv` and `wide.onnx`; see `material`.
        count: How many bits.
        seed: Of the chance that picks them.
    """
    checks = {**_before_publishing(home), **_published(home)}
    chance, figures = random.Random(seed), Figures()
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        paths, notices = checks[kind]
        path = chance.choice(paths)
        bit = _any_bit(path, chance)
        if _flipped(path, bit, notices):
            figures.noticed[kind] += 1
        else:
            figures.missed.append(f"{kind}: {path.name}, bit {bit}")
    return figures


_Check = tuple[list[Path], Callable[[], bool]]


def _any_bit(path: Path, chance: random.Random) -> int:
    size = path.stat().st_size
    first = max(0, size - _END_BYTES) if chance.random() < 0.5 else 0
    return chance.randrange(first * 8, size * 8)


def _flipped(path: Path, bit: int, notices: Callable[[], bool]) -> bool:
    """Ask with one bit flipped, and put everything beside the file back as it was."""
    before = {each: each.read_bytes() for each in path.parent.iterdir() if each.is_file()}
    changed = bytearray(before[path])
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    try:
        return notices()
    finally:
        for each, data in before.items():
            if not each.exists() or each.read_bytes() != data:
                each.write_bytes(data)


def _options(home: Path) -> dict[str, object]:
    features = ["a", "b", "c", "d"]
    return {"model": str(home / "wide.onnx"), "features": features, "partition_size": "20k", "workers": 1}


def _before_publishing(home: Path) -> dict[str, _Check]:
    """Leave a job whose parts are all scored, and say what notices that one is not what it was."""
    preview = bs.plan(home / "in.csv", home / "unpublished.parquet", **_options(home))  # type: ignore[arg-type]
    plan, found = preview.plan, preview.target
    assert found is not None
    with workspace.opened(found, plan) as space:
        for partition in plan.partitions:
            scoring.score_partition(partition, plan.recipe, space)

    def before_publish() -> bool:
        done = workspace.done(space, plan.partitions)
        whole = len(done) == len(plan.partitions) and workspace.stored(found) == plan
        return not whole or bool(commit.damaged(space, done))

    def before_scoring() -> bool:
        model._sessions.clear()
        return _refuses(lambda: model.session_for(plan.recipe.scorers[0].model))

    return {
        "part": (sorted(found.workspace.glob("p0*.parquet")), before_publish),
        "receipt of a part": (sorted(found.workspace.glob("p0*.json")), before_publish),
        "plan": ([found.workspace / "plan.json"], before_publish),
        "model": ([home / "wide.onnx"], before_scoring),
    }


def _published(home: Path) -> dict[str, _Check]:
    for output in ("out.parquet", "out"):
        bs.score(home / "in.csv", home / output, **_options(home))  # type: ignore[arg-type]

    def verified(output: str) -> bool:
        with patch.object(verify, "_score_again", lambda *_: None):
            return _refuses(lambda: verify.verify(str(home / output)))

    return {
        "output": ([home / "out.parquet"], lambda: verified("out.parquet")),
        "its receipt": ([home / "out.receipt.json"], lambda: verified("out.parquet")),
        "dataset": (sorted((home / "out").glob("*.parquet")), lambda: verified("out")),
        "its manifest": (sorted((home / "out" / "_batchserve").iterdir()), lambda: verified("out")),
    }


def _refuses(act: Callable[[], object]) -> bool:
    try:
        act()
    except BatchserveError:
        return True
    return False
