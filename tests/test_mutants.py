"""Real files with bytes flipped, cut, doubled and put in: nothing breaks, every record is accounted for."""

import bz2
import gzip
import io
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import ipc

import batchserve as bs
import models
import mutants
import splitters
from mutants import Seed, Verdict

COUNT = 500


def test_every_record_of_a_mutated_file_is_scored_or_rejected_at_its_place() -> None:
    """500 mutants of 26 files: no traceback, no hang, no gigabyte; rows and rejects are all records."""
    found = mutants.run(COUNT)

    assert found.faults == []
    assert len(found.verdicts) == COUNT
    codes = {verdict.code for verdict in found.verdicts}
    assert {0, 65, 70} <= codes
    assert sum(verdict.rejects > 0 for verdict in found.verdicts) > COUNT // 20


def test_mutants_are_the_same_at_every_run(tmp_path: Path) -> None:
    """A mutant is known by its number, and most are not the file they were."""
    raw = mutants.seeds(tmp_path)[0].raw

    first, again = ([mutants.mutate(raw, random.Random(f"1 {i}")) for i in range(50)] for _ in range(2))

    assert first == again
    assert sum(mutant != raw for mutant, _ in first) > 45


def test_a_model_with_metadata_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Metadata that is not UTF-8 is a damaged model, not a traceback."""
    path = tmp_path / "model.onnx"
    raw = (mutants.EXAMPLES / "iris/model.onnx").read_bytes()
    path.write_bytes(raw.replace(b'["sepal_length', b'["sepal\xb0length'))

    with pytest.raises(bs.BatchserveError, match="can't decode byte 0xb0") as refused:
        bs.plan(mutants.EXAMPLES / "iris/iris.csv", model=path)

    assert refused.value.exit_code == 70
    assert "damaged" in refused.value.hint


# -- what judges them -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "offsets"),
    [
        (b"a,b\n1,2\n3,4", [4, 8]),
        (b"\xef\xbb\xbfa\n\n1\r\n\r\n2\r3", [6, 11, 13]),
        (b'a\n"x\ny"\n"z\n1\n', [2, 8]),
        (b'a\n6" x\n"""\n"\n', [2, 7]),
        (b"", []),
        (b"a\n", []),
    ],
)
def test_csv_is_split_as_worked_by_hand(raw: bytes, offsets: list[int]) -> None:
    """The splitter that mutants are held against is right where a person can check it."""
    assert splitters.csv_records(raw) == offsets


def test_other_dialects_are_split_as_worked_by_hand() -> None:
    """Lines before the header, no header, other quotes and escapes are known to the splitter."""
    marks = splitters.Marks(delimiter=";", quote="'", escape="\\", header=False, skip_lines=1)

    assert splitters.csv_records(b"title\n1;'a\nb'\n2;c\\\nd\n", marks) == [6, 14]
    assert splitters.json_records(b'{"a": 1}\n \n[2]\r\n3') == [0, 11, 16]


@pytest.mark.parametrize(
    ("pack", "suffix"), [(gzip.compress, "gz"), (bz2.compress, "bz2"), (lzma.compress, "xz")]
)
def test_packed_files_are_unpacked_whole_or_not_at_all(pack: object, suffix: str) -> None:
    """Two streams are read, a cut one and what follows the last one are damage."""
    assert callable(pack)
    whole = pack(b"one") + pack(b"two")

    assert splitters.unpacked(whole, suffix) == b"onetwo"
    assert splitters.unpacked(whole[:-3], suffix) is None
    assert splitters.unpacked(whole + b"more", suffix) is None
    assert splitters.readable_bytes(whole, suffix) == splitters.readable_bytes(whole + b"more", suffix) == 6
    assert splitters.readable_bytes(whole[:-20], suffix) in {3, 6}
    assert splitters.readable_bytes(b"no", suffix) == 0


def test_the_rows_of_parquet_are_read_from_its_footer() -> None:
    """The reader of footers, which knows no Arrow, finds the rows; without a footer it finds none."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": range(777), "b": ["x"] * 777}), sink, row_group_size=100)

    assert splitters.parquet_rows(sink.getvalue()) == 777
    assert splitters.parquet_rows(sink.getvalue()[:-1]) is None
    assert splitters.parquet_rows(b"PAR1\x15\x02\x19\x09\x00\x00\x00PAR1") is None


@pytest.mark.parametrize("open_", [ipc.new_file, ipc.new_stream])
def test_the_rows_of_arrow_are_read_from_its_messages(open_: Callable[..., Any]) -> None:
    """The reader of messages, which knows no Arrow, finds the rows; of a cut file it finds none."""
    table = pa.table({"a": range(777), "b": ["x"] * 777})
    sink = io.BytesIO()
    with open_(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)

    assert splitters.arrow_rows(sink.getvalue()) == 777
    assert splitters.arrow_rows(sink.getvalue()[:-9]) is None
    assert splitters.readable_arrow_rows(sink.getvalue()[:-9]) in {0, 777}  # a file's footer, a stream's end


# -- the judge itself -------------------------------------------------------------------------


def judged(folder: Path, raw: bytes, name: str = "rows.csv") -> Verdict:
    """Judge a file of the model that knows colours."""
    seed = Seed(name, raw, {"model": models.texts(folder), "on_null": "fill=x"})
    return mutants.judged(seed, raw, Verdict(0, name, ""), folder)


def test_a_lost_record_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the splitter finds one record more, or one elsewhere, the judge says so."""
    raw = b"kind,n\nred,1\nred\ngreen,3\n"
    assert judged(tmp_path, raw).fault == ""

    for offsets, fault in (
        ([7, 13, 17, 25], "2 rows and 1 rejects of 4"),
        ([7, 12, 17], "is not at its place"),
    ):
        monkeypatch.setattr(splitters, "csv_records", lambda *_, found=offsets: found)
        (tmp_path / "out.parquet").unlink()
        assert fault in judged(tmp_path, raw).fault


def test_an_exception_that_is_not_ours_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback and an exit code that data cannot have are told."""

    def broken(*_: object, **__: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(bs, "score", broken)
    assert "KeyError('lost')" in judged(tmp_path, b"kind\nred\n").fault

    def full(*_: object, **__: object) -> None:
        raise bs.errors.StorageError("full")

    monkeypatch.setattr(bs, "score", full)
    assert judged(tmp_path, b"kind\nred\n").fault == "exit 74: full"
