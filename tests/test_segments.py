"""Packed files in many partitions: unpacked once, scored by all workers, continued after a kill."""

import gzip
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import batchserve as bs
from batchserve import events, inputs, planning, verify
from batchserve.config import Job
from batchserve.errors import DataError, Problems
from batchserve.events import Event
from batchserve.inputs import Extent, Partition, files, packed
from batchserve.segments import Unpacker
from workbench import PACK, doubler


def text(rows: int) -> bytes:
    """Return a CSV with quoted line ends, which packs to about a third."""
    chance = random.Random(7)
    notes = ("plain", '"two\nlines"', '"say ""so"""')
    lines = [f"{chance.random()},{notes[i % 3]} \n".replace('" ', '"') for i in range(rows)]
    return "".join(["x,note\n", *lines]).encode()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start in an empty folder with a model that doubles x."""
    monkeypatch.chdir(tmp_path)
    doubler(Path("double.onnx"))


def score(source: str, output: str = "out.parquet", **options: Any) -> bs.Report:
    """Score in small partitions."""
    wanted = {"model": "double.onnx", "partition_size": "20k", "workers": 2, **options}
    return bs.score(source, output, **wanted)


@pytest.mark.parametrize("suffix", PACK)
def test_a_packed_file_gives_the_rows_of_the_plain_one(suffix: str) -> None:
    """In many partitions or in one, packed or not: the same rows, and nothing is left over."""
    data = text(10_000)
    Path("in.csv").write_bytes(data)
    Path(f"in.csv{suffix}").write_bytes(PACK[suffix](data))
    score("in.csv", "plain.parquet")

    report = score(f"in.csv{suffix}")

    assert report.partitions > 5
    assert pq.read_table("out.parquet").equals(pq.read_table("plain.parquet"))
    assert verify.verify("out.parquet").partitions_scored >= 2
    assert not Path(".out.parquet.batchserve").exists()


@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.csv"])
def test_what_cannot_be_wound_is_cut_all_the_same(name: str) -> None:
    """Packed JSON lines, and a CSV that is decoded as a stream, are scored in partitions."""
    if name.startswith("in.jsonl"):
        data = "".join(f'{{"x": {i}, "note": "n{i}"}}\n' for i in range(8_000)).encode()
        Path(name).write_bytes(gzip.compress(data))
    else:
        Path(name).write_bytes(text(8_000).decode().encode("utf-16"))

    report = score(name)

    assert (report.rows, report.partitions > 5) == (8_000, True)


class Cut(BaseException):
    """Stands for a kill: nothing catches it."""


class CutAfter:
    """Ends the run after so many partitions; notes which were scored and which were there."""

    def __init__(self, partitions: int | None = None) -> None:
        self._left = partitions
        self.resumed = self.scored = 0

    def on(self, event: Event) -> None:
        if isinstance(event, events.PartitionScored):
            self.resumed += event.resumed
            self.scored += not event.resumed
            if self._left is not None and self.scored >= self._left:
                raise Cut


def test_a_killed_run_of_one_gzip_continues_from_its_finished_partitions() -> None:
    """What was scored of it is not scored again, and the bytes are those of a calm run."""
    Path("in.csv.gz").write_bytes(gzip.compress(text(10_000)))
    score("in.csv.gz", "calm.parquet")
    with pytest.raises(Cut):
        score("in.csv.gz", listener=CutAfter(6))
    again = CutAfter()

    score("in.csv.gz", listener=again)

    assert again.resumed >= 6
    assert Path("out.parquet").read_bytes() == Path("calm.parquet").read_bytes()


@pytest.mark.parametrize("suffix", PACK)
def test_a_packed_file_that_is_cut_off_publishes_nothing(suffix: str) -> None:
    """Wherever the fault is met, by the unpacker or a partition: exit 65 with the place."""
    whole = PACK[suffix](text(10_000))
    Path(f"in.csv{suffix}").write_bytes(whole[: len(whole) * 3 // 4])

    with pytest.raises(DataError, match=r"in\.csv\.\w+: .*damaged or cut off"):
        score(f"in.csv{suffix}")

    assert not Path("out.parquet").exists()


def test_a_quote_that_is_never_closed_in_a_packed_file_is_told() -> None:
    """All partitions after it have no rows: what follows the quote is one record, in no budget."""
    data = text(6_000) + b'1.5,"open\n' + b"2.5,plain\n" * 20_000
    Path("in.csv.gz").write_bytes(gzip.compress(data))

    with pytest.raises(DataError, match=r"1 of 6,001 rows cannot be scored(.|\n)*never closed") as told:
        score("in.csv.gz", max_errors=1)

    assert "rows after it are unknown" in told.value.message
    assert not Path("out.parquet").exists()


# -- the unpacker itself ----------------------------------------------------------------------


def planned(name: str = "in.csv.gz") -> planning.Plan:
    """Return the plan of a packed file in many partitions."""
    job = Job(model="double.onnx", partition_size="20k")
    return planning.make(job, files.resolve([name]), Problems(), {}, {})


def rows_of(partition: Partition, made: planning.Plan) -> tuple[list[Any], list[tuple[int, int]]]:
    """Return the rows of a partition and the extents of its slices."""
    items = [item for part in partition.slices for item in inputs.read(part, made.recipe.reading)]
    rows = [row for item in items if isinstance(item, inputs.Block) for row in item.batch.to_pylist()]
    return rows, [(item.start, item.stop) for item in items if isinstance(item, Extent)]


@pytest.mark.parametrize("order", ["forward", "backward", "mixed", "twice"])
def test_segments_hold_just_the_records_of_their_partitions(order: str, tmp_path: Path) -> None:
    """In whatever order they are asked for, with a segment or without: the same rows and extents."""
    Path("in.csv.gz").write_bytes(gzip.compress(text(3_000)))
    made = planned()
    partitions = list(made.partitions)
    orders = {
        "forward": partitions, "backward": partitions[::-1], "twice": [*partitions[:3], *partitions[1:]],
        "mixed": random.Random(3).sample(partitions, len(partitions)),
    }  # fmt: skip

    with Unpacker(tmp_path, made.recipe.reading, made.partitions) as unpacker:
        for partition in orders[order]:
            ready = unpacker.prepared(partition)
            assert unpacker.needed(partition)
            assert rows_of(ready, made) == rows_of(partition, made)
            unpacker.release(ready)
            assert rows_of(ready, made) == rows_of(partition, made)  # without its segment

    assert list(tmp_path.glob("*.segment")) == []


def test_segments_of_an_earlier_run_go(tmp_path: Path) -> None:
    """What a killed run left is removed when the next one begins."""
    Path("in.csv.gz").write_bytes(gzip.compress(text(3_000)))
    made = planned()
    (tmp_path / "0123456789ab.segment").write_bytes(b"old")

    with Unpacker(tmp_path, made.recipe.reading, made.partitions):
        assert list(tmp_path.glob("*.segment")) == []


@pytest.mark.parametrize("codec", ["gzip", "bzip2", "xz", "zstd"])
def test_how_much_a_file_holds_is_estimated(codec: Any, tmp_path: Path) -> None:
    """From the first MiB; a file that is no such thing counts as it is, and is told when it is read."""
    data = text(40_000)
    path = tmp_path / "packed"
    suffix = next(suffix for suffix, name in packed.SUFFIXES.items() if name == codec)
    path.write_bytes(PACK[suffix](data))
    size = path.stat().st_size

    assert abs(packed.promised_bytes(str(path), codec, size) / len(data) - 1) < 0.1

    path.write_bytes(b"no such thing" * 100)
    assert packed.promised_bytes(str(path), codec, 1_300) in {1_300, 5_200}
