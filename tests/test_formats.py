"""Formats and codecs: what goes in comes out, and a damaged file is an error, never fewer rows."""

import gzip
import io
import random
import re
import zlib
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather, ipc

import batchserve as bs
from batchserve import inputs
from batchserve.errors import BatchserveError, DataError, UsageError
from batchserve.inputs import Block, Extent, Reading, Wish, cutting, files, packed, records
from batchserve.inputs import ipc as reader_of_arrow
from batchserve.inputs.dialect import COMMON
from batchserve.inputs.parquet import translated
from workbench import PACK, Score, zstd


def written(path: Path, table: pa.Table, **options: Any) -> Path:
    """Write a table in the format of the suffix."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
    elif path.suffix == ".arrows":
        with ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=options.get("chunksize"))
    elif path.suffix == ".csv":
        path.write_bytes(table.to_pandas().to_csv(index=False).encode())
    elif path.suffix == ".jsonl":
        path.write_text(table.to_pandas().to_json(orient="records", lines=True))
    else:
        feather.write_feather(table, str(path), **({"compression": "uncompressed"} | options))
    return path


ROWS = 5000
PLAIN = pa.table({"x": range(ROWS), "s": [f"text {i}" for i in range(ROWS)]})


# -- Arrow files and streams ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.arrow", "a.feather", "a.ipc", "a.arrows"])
@pytest.mark.parametrize("size", ["64MB", "20k"])
def test_an_arrow_file_gives_its_rows(name: str, size: str, tmp_path: Path, score: Score) -> None:
    """Files and streams give all rows in order, whatever the partition size."""
    path = written(tmp_path / name, PLAIN, chunksize=300)

    table = score(path, partition_size=size, workers=2)

    assert table.select(["x", "s"]).equals(PLAIN)
    assert table["y"].to_pylist() == [2.0 * x for x in range(ROWS)]


@pytest.mark.parametrize("compression", ["lz4", "zstd", "uncompressed"])
def test_a_compressed_feather_file_gives_its_rows(compression: str, tmp_path: Path, score: Score) -> None:
    """Buffers packed with lz4 or zstd are unpacked."""
    path = written(tmp_path / "a.feather", PLAIN, compression=compression)

    assert score(path).select(["x", "s"]).equals(PLAIN)


def test_polars_writes_arrow_that_we_read(tmp_path: Path, score: Score) -> None:
    """A file by Polars, with its string views, reads as Polars reads it."""
    frame = pl.DataFrame(
        {"x": [1, 2, 3], "s": ["a", None, "c"], "c": pl.Series(["u", "v", "u"]).cast(pl.Categorical)}
    )
    frame.write_ipc(tmp_path / "a.arrow")

    table = score(tmp_path / "a.arrow").drop_columns(["y"])

    assert pl.DataFrame(table).cast({"c": pl.String}).equals(frame.cast({"c": pl.String}))


def test_an_arrow_file_is_cut_between_record_batches(tmp_path: Path) -> None:
    """Partitions are ranges of record batches that join, with the number of the first record of each."""
    path = written(tmp_path / "a.arrow", PLAIN, chunksize=300)
    (source,) = files.resolve([str(path)])

    slices = [part for each in cutting.partitions([source], 20_000) for part in each.slices]

    assert len(slices) > 3
    assert [part.start for part in slices[1:]] == [part.stop for part in slices[:-1]]
    assert [part.first_record for part in slices] == [300 * part.start for part in slices]
    assert sum(part.size_bytes for part in slices) <= source.size_bytes
    assert cutting.partitions([source], 20_000)[1].place.startswith("partition 1 (a.arrow, record batches ")


@pytest.mark.parametrize("name", ["a.arrow", "a.parquet"])
@given(data=st.data())
def test_a_row_group_cut_into_slices_gives_every_row_once(name: str, data: st.DataObject) -> None:
    """Whatever the groups, the target and the cuts: the slices join, and each knows its first record."""
    sizes = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=4), "rows of each group")
    target_bytes, cuts = data.draw(st.integers(1, 2_000)), data.draw(st.integers(1, 60))
    table = pa.table({"x": range(sum(sizes)), "s": [f"text {i}" for i in range(sum(sizes))]})
    with TemporaryDirectory() as folder:
        path = grouped(Path(folder) / name, table, sizes)
        sources = files.resolve([str(path)])
        reading = Reading(schema_=table.schema, columns=("s", "x"), batch_rows=64)
        made = cutting.partitions(sources, target_bytes, COMMON, cuts)
        read = [(part, list(inputs.read(part, reading))) for each in made for part in each.slices]

    rows: list[int] = []
    for part, items in read:
        assert part.first_record == len(rows)
        rows += [x for item in items if isinstance(item, Block) for x in item.batch["x"].to_pylist()]
        assert part.rows is None or len(rows) == part.first_record + part.rows[1] - part.rows[0]
    assert rows == list(range(sum(sizes)))
    assert len(made) <= max(cuts, len(sizes))


def grouped(path: Path, table: pa.Table, sizes: list[int]) -> Path:
    """Write a table in row groups, or record batches, of the sizes given."""
    opened = pq.ParquetWriter if path.suffix == ".parquet" else ipc.new_file
    with opened(str(path), table.schema) as writer:
        start = 0
        for rows in sizes:
            writer.write_table(table.slice(start, rows))
            start += rows
    return path


def test_one_row_group_is_scored_by_all_workers(tmp_path: Path, model: Path, score: Score) -> None:
    """A file of one row group is several partitions, and gives the same rows as one."""
    table = pa.table({"x": range(5_000)})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False)

    cut = score(tmp_path / "a.parquet", partition_size="12k", add_source=True)

    plan = bs.plan(tmp_path / "a.parquet", model=model, partition_size="12k").plan
    assert [part.rows for each in plan.partitions for part in each.slices] == [
        (0, 1666), (1666, 3333), (3333, 5000)
    ]  # fmt: skip
    assert plan.partitions[1].place == "partition 1 (a.parquet, row groups 0 to 1, rows 1,666 to 3,333)"
    assert cut.equals(score(tmp_path / "a.parquet", add_source=True))


def test_dictionaries_that_differ_per_record_batch_are_kept_apart(tmp_path: Path, score: Score) -> None:
    """A stream that replaces its dictionary gives the texts of each record batch."""
    schema = pa.schema([("x", pa.int64()), ("s", pa.dictionary(pa.int32(), pa.string()))])
    with ipc.new_stream(str(tmp_path / "a.arrows"), schema) as writer:
        for texts in (["a", "b"], ["c", "a"], ["d", "d"]):
            column = pa.array(texts).dictionary_encode()
            writer.write_batch(pa.record_batch([pa.array([1, 2]), column], schema=schema))

    assert score(tmp_path / "a.arrows")["s"].to_pylist() == ["a", "b", "c", "a", "d", "d"]


@pytest.mark.parametrize("rows", [0, 1])
def test_an_arrow_file_without_rows_gives_none(rows: int, tmp_path: Path, score: Score) -> None:
    """No record batch, or none with a row, gives a valid empty output."""
    table = PLAIN.slice(0, rows)

    for name in ("a.arrow", "a.arrows"):
        assert score(written(tmp_path / name, table)).num_rows == rows


@pytest.mark.parametrize("columns", [("x",), ("s", "x"), ("d",), ("l", "d")])
def test_columns_that_nobody_wants_are_not_read(columns: tuple[str, ...], tmp_path: Path) -> None:
    """Any choice of columns, dictionaries among those left out, gives those columns in the order wanted."""
    texts = pa.array(["p", "q"] * 30)
    table = pa.table({
        "d": texts.dictionary_encode(), "x": range(60), "l": pa.array([["p"], ["q"]] * 30), "s": texts,
        "e": pa.array(["t"] * 60).dictionary_encode(),
    })  # fmt: skip
    for name in ("a.arrow", "a.arrows"):
        path = written(tmp_path / name, table, chunksize=20)
        (partition,) = cutting.partitions(files.resolve([str(path)]), 1 << 20)
        reading = inputs.Reading(schema_=table.schema, columns=columns, batch_rows=64)

        items = inputs.read(partition.slices[0], reading)

        found = pa.Table.from_batches([item.batch for item in items if isinstance(item, inputs.Block)])
        assert found.equals(table.select(columns))


def test_one_huge_record_batch_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: Score
) -> None:
    """A table that was written as one record batch takes no memory of its size."""
    monkeypatch.setattr(reader_of_arrow, "_MAPPED_BYTES", 1 << 20)
    rows = 500_000
    table = pa.table({"x": np.arange(rows), "s": [f"text {i}" for i in range(rows)]})
    with ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    del table
    with ipc.open_file(str(tmp_path / "a.arrow")) as file:
        assert file.num_record_batches == 1
    sources = files.resolve([str(tmp_path / "a.arrow")])
    (partition,) = cutting.partitions(sources, 1 << 30)
    schema = inputs.look(sources, Wish()).schema
    reading = inputs.Reading(schema_=schema, columns=("x", "s"), batch_rows=1024)
    before, most = pa.total_allocated_bytes(), 0

    for item in inputs.read(partition.slices[0], reading):
        assert item is not None
        most = max(most, pa.total_allocated_bytes() - before)

    assert most < 1 << 20
    assert score(tmp_path / "a.arrow")["x"].to_pylist() == [*range(rows)]


def test_types_that_parquet_lacks_are_refused_by_name(tmp_path: Path, score: Score) -> None:
    """All columns of an Arrow file that no Parquet file can hold are named before any work."""
    runs = pa.RunEndEncodedArray.from_arrays([2], [7])
    union = pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])])
    table = pa.table({"x": [1, 2], "runs": runs, "either": union})
    with ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)

    with pytest.raises(DataError, match=r"(?s)column runs is .*column either is "):
        score(tmp_path / "a.arrow")


def test_types_that_parquet_changes_are_changed_alike_everywhere(tmp_path: Path, score: Score) -> None:
    """Seconds become milliseconds, as Parquet has no seconds; values stay."""
    moment = datetime(2013, 1, 31, 5, 6, 7)
    table = pa.table({
        "x": [1], "t": pa.array([moment], pa.timestamp("s")), "d": pa.array([date(2013, 1, 31)], pa.date64()),
    })  # fmt: skip

    found = score(written(tmp_path / "a.arrow", table))

    assert found.schema.field("t").type == pa.timestamp("ms")
    assert found.select(["t", "d"]).to_pylist() == [{"t": moment, "d": date(2013, 1, 31)}]


def test_type_is_refused_for_arrow(tmp_path: Path, score: Score) -> None:
    """--type is for text; columns of Arrow have types."""
    with pytest.raises(UsageError, match="--type s"):
        score(written(tmp_path / "a.arrow", PLAIN), type={"s": "text"})


# -- damage -----------------------------------------------------------------------------------


def all_rows(path: Path, target_bytes: int = 1 << 20) -> int:
    """Read a file as a job does, and count its rows and rejects."""
    sources = files.resolve([str(path)])
    look = inputs.look(sources, Wish())
    reading = inputs.Reading(schema_=look.schema, columns=tuple(look.schema.names), batch_rows=64)
    parts = [part for each in cutting.partitions(sources, target_bytes) for part in each.slices]
    items = [item for part in parts for item in inputs.read(part, reading)]
    blocks: list[int] = [item.batch.num_rows for item in items if isinstance(item, inputs.Block)]
    return sum(blocks) + sum(isinstance(item, inputs.BadRecord) for item in items)


def rows_or_error(path: Path) -> int | str:
    """Return how many rows a file gives, or the name that its error tells."""
    try:
        return all_rows(path)
    except BatchserveError as error:
        return path.name if path.name in error.message else error.message


SMALL = pa.table({"x": range(60), "s": [f"text {i}" for i in range(60)]})


@pytest.mark.parametrize("name", ["a.arrow", "a.arrows", "a.feather", "a.parquet"])
def test_a_file_cut_anywhere_is_an_error(name: str, tmp_path: Path) -> None:
    """A Parquet or Arrow file that lacks its end is told with its name; not one row is given for whole."""
    options: dict[str, Any] = {"row_group_size": 20} if name == "a.parquet" else {"chunksize": 20}
    path = written(tmp_path / name, SMALL, **options)
    whole = path.read_bytes()
    assert all_rows(path) == 60

    for size in range(1, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=name):
            all_rows(path)


def test_a_stream_without_its_end_mark_is_an_error(tmp_path: Path) -> None:
    """A stream cut between two record batches looks whole but for its end mark."""
    path = written(tmp_path / "a.arrows", SMALL, chunksize=20)
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])

    with pytest.raises(DataError, match=r"a\.arrows: .* at byte [\d,]+: it ends without an end mark"):
        all_rows(path)


def test_two_streams_in_one_file_are_an_error(tmp_path: Path) -> None:
    """What follows the end of a stream would not be read: it is told."""
    path = written(tmp_path / "a.arrows", SMALL)
    path.write_bytes(path.read_bytes() * 2)

    with pytest.raises(DataError, match="something follows its end"):
        all_rows(path)


@pytest.mark.parametrize("name", ["a.arrow", "a.arrows", "a.parquet"])
def test_a_damaged_file_never_gives_fewer_rows(name: str, tmp_path: Path) -> None:
    """Bytes that change in an Arrow or Parquet file give an error or all rows: no other, no crash."""
    path = written(
        tmp_path / name, SMALL, **({"chunksize": 20} if "arrow" in name else {"row_group_size": 20})
    )
    whole = path.read_bytes()
    chance = random.Random(7)

    for _ in range(150):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(damaged)
        assert rows_or_error(path) in {60, name}


def test_damage_in_parquet_is_told_with_the_row_before_it(tmp_path: Path) -> None:
    """The place in a Parquet file that cannot be read is told by the last row before it."""
    path = tmp_path / "a.parquet"
    pq.write_table(SMALL, path, row_group_size=20, compression="none", write_page_checksum=True)
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"text 45") + 5] ^= 1
    path.write_bytes(whole)

    partitions = cutting.partitions(files.resolve([str(path)]), 1)
    reading = inputs.Reading(schema_=SMALL.schema, columns=("x", "s"), batch_rows=64)
    assert len(partitions) == 3

    with pytest.raises(DataError, match=r"a\.parquet: is damaged or cut off after row 40"):
        list(inputs.read(partitions[2].slices[0], reading))
    with pytest.raises(DataError, match="in its first 4,096 rows"):
        all_rows(path)


def test_a_wrong_number_of_rows_in_a_footer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row group with fewer rows than its footer states is not taken for whole."""
    path = written(tmp_path / "a.parquet", SMALL)
    whole = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: iter([*whole(*a, **k)][:-1]))

    (partition,) = cutting.partitions(files.resolve([str(path)]), 1 << 20)
    reading = inputs.Reading(schema_=SMALL.schema, columns=("x",), batch_rows=64)

    with pytest.raises(DataError, match="its footer states 60"):
        list(inputs.read(partition.slices[0], reading))


# -- codecs -----------------------------------------------------------------------------------


CODECS = pytest.mark.parametrize("suffix", PACK)
LINES = "".join(f"{i},{random.Random(i).random()}\n" for i in range(3000)).encode()
TEXT = b"x,s\n" + LINES


@CODECS
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_packed_text_file_gives_its_rows(suffix: str, form: str, tmp_path: Path, score: Score) -> None:
    """Every codec around every text format gives the rows of the text itself."""
    plain = written(tmp_path / f"plain.{form}", PLAIN)
    path = tmp_path / f"a.{form}{suffix}"
    path.write_bytes(PACK[suffix](plain.read_bytes()))

    assert score(path).equals(score(plain))


@CODECS
def test_streams_one_after_another_are_one_text(suffix: str, tmp_path: Path, score: Score) -> None:
    """`cat a.bz2 b.bz2` is a valid file of the text of both."""
    path = tmp_path / f"a.csv{suffix}"
    path.write_bytes(PACK[suffix](TEXT) + PACK[suffix](b"") + PACK[suffix](LINES))

    assert score(path)["x"].to_pylist() == [*range(3000)] * 2


@CODECS
def test_the_codec_is_known_by_its_first_bytes(suffix: str, tmp_path: Path, score: Score) -> None:
    """A packed file whose suffix does not say so is unpacked all the same."""
    path = tmp_path / "a.csv"
    path.write_bytes(PACK[suffix](TEXT))

    assert score(path).num_rows == 3000


@CODECS
def test_a_packed_file_cut_anywhere_is_an_error(suffix: str, tmp_path: Path) -> None:
    """A packed file that lacks its end is told with its name and the place that was reached."""
    packed_text = PACK[suffix](TEXT)
    path = tmp_path / f"a.csv{suffix}"

    for size in [*range(30, len(packed_text) - 12, 997), *range(len(packed_text) - 12, len(packed_text))]:
        path.write_bytes(packed_text[:size])
        with pytest.raises(DataError, match=r"after byte [\d,]+ of what it holds") as refused:
            all_rows(path)
        assert path.name in refused.value.message


@CODECS
@pytest.mark.parametrize("tail", [b"garbage after the end", b"\x1f", b"BZh9 not really"])
def test_something_after_the_end_is_an_error(suffix: str, tail: bytes, tmp_path: Path) -> None:
    """What follows a packed stream and is none itself is told: it may be rows, damaged."""
    path = tmp_path / f"a.csv{suffix}"
    path.write_bytes(PACK[suffix](TEXT) + tail)

    with pytest.raises(DataError, match="damaged or cut off"):
        all_rows(path)


@CODECS
def test_a_damaged_second_stream_is_an_error(suffix: str, tmp_path: Path) -> None:
    """A second stream whose first bytes are damaged is not left out without a word."""
    path = tmp_path / f"a.csv{suffix}"
    second = bytearray(PACK[suffix](LINES))
    second[1] ^= 0x55
    path.write_bytes(PACK[suffix](TEXT) + bytes(second))

    with pytest.raises(DataError, match="damaged or cut off"):
        all_rows(path)


def test_zeros_after_gzip_and_xz_are_padding(tmp_path: Path) -> None:
    """Tapes and blocks are padded with zeros; both formats allow that."""
    for suffix in (".gz", ".xz"):
        path = tmp_path / f"a.csv{suffix}"
        path.write_bytes(PACK[suffix](TEXT) + bytes(512) + PACK[suffix](LINES) + bytes(8))

        assert all_rows(path) == 6000


@CODECS
@given(data=st.binary(max_size=3000), places=st.lists(st.integers(0, 3500), max_size=4))
def test_a_packed_file_reads_and_seeks_forward(suffix: str, data: bytes, places: list[int]) -> None:
    """Going forward to any place and reading there gives what the unpacked bytes have there."""
    path = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") / f"seek{suffix}"  # noqa: S108  removed below
    path.write_bytes(PACK[suffix](data))
    try:
        with records.opened(str(path), codec=packed.SUFFIXES[suffix]) as file:
            at = 0
            for place in sorted(places):
                if place >= at:
                    file.seek(place)
                    piece = records.read_exactly(file, 10)
                    assert piece == data[place : place + 10]
                    at = file.tell()
            with pytest.raises(io.UnsupportedOperation):
                file.seek(-1)
    finally:
        path.unlink()


def test_a_zstd_frame_with_a_huge_window_is_told_as_such(tmp_path: Path) -> None:
    """A frame that needs 2 GiB to unpack is whole, and refused for that reason with the way on."""
    head = b"\x28\xb5\x2f\xfd" + bytes([0, (31 - 10) << 3])
    block = (len(TEXT) << 3 | 1).to_bytes(3, "little") + TEXT
    path = tmp_path / "a.csv.zst"
    path.write_bytes(head + block)

    with pytest.raises(DataError, match=r"a\.csv\.zst: is packed in a way that needs more than 128 MiB"):
        all_rows(path)


def member(text: bytes, flags: int) -> bytes:
    """Pack text into a gzip member whose header has the optional fields of `flags`."""
    header = bytes([0x1F, 0x8B, 8, flags, 0, 0, 0, 0, 0, 3])
    header += b"\x06\x00BC\x02\x00\x1b\x00" if flags & 4 else b""
    header += b"a name\0" if flags & 8 else b""
    header += b"a comment\0" if flags & 16 else b""
    header += (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little") if flags & 2 else b""
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(text) + packer.flush()
    return header + body + zlib.crc32(text).to_bytes(4, "little") + len(text).to_bytes(4, "little")


@pytest.mark.parametrize("flags", range(0, 32, 2))
def test_gzip_headers_may_have_any_field(flags: int, tmp_path: Path) -> None:
    """Names, comments, checksums of headers and extra fields (as block gzip has them) are passed over."""
    path = tmp_path / "a.csv.gz"
    path.write_bytes(member(TEXT, flags) + member(LINES, flags) * 3)

    assert all_rows(path) == 4 * 3000


def test_the_place_of_a_cut_is_told_to_384_kib(tmp_path: Path) -> None:
    """What was unpacked before a cut is counted, in every codec, though rows are read in larger blocks."""
    text = TEXT * 20
    for suffix, pack in PACK.items():
        path = tmp_path / f"a.csv{suffix}"
        path.write_bytes(pack(text)[:-9])

        with (
            pytest.raises(DataError) as refused,
            records.opened(str(path), codec=packed.SUFFIXES[suffix]) as file,
        ):
            records.read_exactly(file, 1 << 22)

        place = int(re.findall(r"after byte ([\d,]+) of", refused.value.message)[0].replace(",", ""))
        assert len(text) - (384 << 10) <= place + (900_000 if suffix == ".bz2" else 0)
        assert place <= len(text)


def test_pzstd_files_begin_with_a_frame_to_skip(tmp_path: Path, score: Score) -> None:
    """Skippable frames, which parallel packers write, hold no text."""
    skip = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    path = tmp_path / "a.csv.zst"
    path.write_bytes(skip + zstd(TEXT) + skip + zstd(LINES))

    assert score(path).num_rows == 6000


# -- any file ---------------------------------------------------------------------------------

CELLS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "int64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "double": (pa.float64(), st.floats(allow_nan=False)),
    "text": (pa.string(), st.text(max_size=5)),
    "bool": (pa.bool_(), st.booleans()),
    "bytes": (pa.binary(), st.binary(max_size=5)),
    "list": (pa.list_(pa.int32()), st.lists(st.integers(-9, 9), max_size=3)),
    "struct": (pa.struct({"a": pa.string()}), st.fixed_dictionaries({"a": st.text(max_size=2)})),
}


@st.composite
def any_table(draw: st.DrawFn) -> pa.Table:
    """Make a table of a few columns of any types, with nulls."""
    names = draw(st.lists(st.sampled_from(sorted(CELLS)), min_size=1, max_size=4, unique=True))
    rows = draw(st.integers(0, 40))
    columns = {}
    for name in names:
        kind, cells = CELLS[name]
        cells = st.none() | cells
        columns[name] = pa.array(draw(st.lists(cells, min_size=rows, max_size=rows)), kind)
    return pa.table(columns)


@given(
    table=any_table(),
    suffix=st.sampled_from(["parquet", "arrow", "arrows"]),
    chunk=st.integers(1, 50),
    target_bytes=st.integers(1, 5000),
)
def test_any_table_reads_equal_whatever_the_split(
    table: pa.Table, suffix: str, chunk: int, target_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any columns in any format, cut anywhere, give the table and the number of each record."""
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    written(path, table, **({"row_group_size": chunk} if suffix == "parquet" else {"chunksize": chunk}))
    sources = files.resolve([str(path)])
    look = inputs.look(sources, Wish(add_source=True))
    reading = inputs.Reading(schema_=look.schema, columns=tuple(look.schema.names), batch_rows=64)

    parts = cutting.laid_out(cutting.partitions(sources, target_bytes), look, add_source=True)
    items = [item for each in parts for part in each.slices for item in inputs.read(part, reading)]

    batches = [item.batch for item in items if isinstance(item, inputs.Block)]
    found = pa.Table.from_batches(batches, look.schema)
    assert found.select(table.column_names).equals(table)
    assert found["source_row"].to_pylist() == [*range(1, table.num_rows + 1)]


# -- which format -----------------------------------------------------------------------------


def test_format_outdoes_the_suffix(tmp_path: Path, score: Score) -> None:
    """With --format a file of any name is read as what the user says it is, packed or not."""
    (tmp_path / "a.txt").write_bytes(TEXT)
    (tmp_path / "b.dat").write_bytes(gzip.compress(TEXT))

    assert score([tmp_path / "a.txt", tmp_path / "b.dat"], format="csv").num_rows == 6000


def test_format_takes_every_file_of_a_folder(tmp_path: Path) -> None:
    """With --format a folder gives all its files but the hidden ones."""
    for name in ("a.txt", "b", "_SUCCESS", ".hidden"):
        (tmp_path / name).write_bytes(TEXT)

    found = files.resolve([str(tmp_path)], "csv")

    assert [Path(source.path).name for source in found] == ["a.txt", "b"]


@pytest.mark.parametrize(("name", "given_"), [("a.tsv", None), ("a.tab.gz", None), ("a.txt", "tsv")])
def test_tsv_is_csv_with_tabs(name: str, given_: files.Given | None, tmp_path: Path) -> None:
    """A TSV, by suffix or by --format, is a CSV whose delimiter is a tab."""
    text = b"x\ts\n1\ta\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)

    (source,) = files.resolve([str(tmp_path / name)], given_)

    assert (source.format, source.delimiter) == ("csv", "\t")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"PK\x03\x04\x14\x00\x00\x00", "is a ZIP archive or an Excel file"),
        ("a.csv", b"ARROW1\x00\x00\x00", "is an Arrow file"),
        ("a.csv", b"PAR1\x15\x04\x15", "is a Parquet file"),
        ("a.arrow", b"x,y\n1,2\n", "is no Arrow file, but something else"),
        ("a.arrow", b"FEA1\x00\x00\x00\x00", "a Feather file of version 1"),
        ("a.feather", b"PAR1\x15\x04\x15", "is no Arrow file, but a Parquet file"),
        ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0), r"is no Parquet file, but packed \(gzip\)"),
        ("a.csv.zst", b"x,y\n1,2\n", "is not zstd"),
        ("a.csv.bz2", gzip.compress(b"x\n1\n", mtime=0), "is not bzip2"),
        ("a.csv", b"\x04\x22\x4d\x18\x64\x40", "packed with lz4"),
    ],
)
def test_a_file_of_another_format_is_told(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    """A file that is not what its suffix says is told with what it is."""
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=says):
        files.resolve([str(tmp_path / name)])


@pytest.mark.parametrize("head", [b"FEA1,x\n1,2\n", b"PAR1,x\n1,2\n", b"BZh9,x\n1,2\n", b"ORC,x\n1,2\n"])
def test_a_header_that_reads_like_magic_is_a_header(head: bytes, tmp_path: Path, score: Score) -> None:
    """A CSV whose first column has the name of a format's first bytes is a CSV."""
    (tmp_path / "a.csv").write_bytes(head)

    assert score(tmp_path / "a.csv")["x"].to_pylist() == [2]


# -- Parquet ----------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip", "lz4", "brotli", "none"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_every_compression_of_parquet_is_read(
    compression: str, version: str, tmp_path: Path, score: Score
) -> None:
    """Row groups packed in any way give their rows, in pages of either version."""
    path = written(tmp_path / "a.parquet", PLAIN, compression=compression, data_page_version=version)

    assert score(path).select(["x", "s"]).equals(PLAIN)


NOW = datetime(2013, 1, 31, 5, 6, 7, 250_000)
KINDS: dict[str, pa.Array] = {
    "int8": pa.array([1, None], pa.int8()),
    "uint64": pa.array([2**64 - 1, None], pa.uint64()),
    "half": pa.array([0.5, None], pa.float16()),
    "decimal": pa.array([Decimal("1.50"), None], pa.decimal128(10, 2)),
    "decimal32": pa.array([Decimal("1.50"), None], pa.decimal32(5, 2)),
    "decimal256": pa.array([Decimal(10) ** 60, None], pa.decimal256(70, 2)),
    "timestamp_ms": pa.array([NOW, None], pa.timestamp("ms")),
    "timestamp_us_tz": pa.array([NOW, None], pa.timestamp("us", "Europe/Berlin")),
    "timestamp_ns": pa.array([1_359_608_767_250_000_001, None], pa.timestamp("ns")),
    "date": pa.array([NOW.date(), None]),
    "time_ms": pa.array([time(1, 2, 3), None], pa.time32("ms")),
    "time_ns": pa.array([1, None], pa.time64("ns")),
    "duration": pa.array([timedelta(seconds=3), None], pa.duration("us")),
    "binary": pa.array([b"\x00\xff", None]),
    "fixed_binary": pa.array([b"ab", None], pa.binary(2)),
    "large_string": pa.array(["a", None], pa.large_string()),
    "string_view": pa.array(["a text too long for a view", None], pa.string_view()),
    "bool": pa.array([True, None]),
    "list": pa.array([[1, None], None], pa.list_(pa.int64())),
    "list_view": pa.array([[1, 2], [3]], pa.list_view(pa.int64())),
    "large_list": pa.array([[1], None], pa.large_list(pa.int64())),
    "fixed_list": pa.array([[1, 2], None], pa.list_(pa.int32(), 2)),
    "struct": pa.array([{"a": 1, "b": {"c": [NOW]}}, None]),
    "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    "dictionary": pa.array(["a", None]).dictionary_encode(),
    "null": pa.nulls(2),
    "uuid": pa.array([bytes(range(16)), None], pa.uuid()),
    "json": pa.array(['{"a": 1}', None], pa.json_()),
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [2]), pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2))
    ),
    "list_of_dictionaries": pa.array([["a"], ["b"]], pa.list_(pa.string())).cast(
        pa.list_(pa.dictionary(pa.int32(), pa.string()))
    ),
    "nested_decimal": pa.array([[Decimal("1.5")], None], pa.list_(pa.decimal128(5, 1))),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_type_passes_through(name: str, suffix: str, tmp_path: Path, score: Score) -> None:
    """A column of any type has the same type and values in the output."""
    table = pa.table({"x": [1.0, 2.0], "c": KINDS[name]})

    column = score(written(tmp_path / f"a.{suffix}", table))["c"]

    assert column.type == KINDS[name].type
    assert column.combine_chunks().equals(table["c"].combine_chunks())


def test_all_types_pass_through_several_partitions(tmp_path: Path, score: Score) -> None:
    """All types at once, from several row groups in several partitions, are glued as they are."""
    table = pa.table({"x": pa.array([1.0, 2.0])} | dict(KINDS))
    path = written(tmp_path / "a.parquet", pa.concat_tables([table] * 6), row_group_size=2)

    found = score(path, partition_size="1k", workers=2)

    assert found.drop_columns(["y"]).equals(pa.concat_tables([table] * 6))


def test_dictionaries_that_differ_per_row_group_are_kept_apart(tmp_path: Path, score: Score) -> None:
    """Row groups with other dictionaries, in one partition or in several, give their own texts."""
    texts = [[f"{group}-{i % 7}" for i in range(1000)] for group in range(6)]
    schema = pa.schema([("x", pa.int64()), ("s", pa.dictionary(pa.int32(), pa.string()))])
    with pq.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for group in texts:
            column = pa.array(group).dictionary_encode()
            writer.write_table(pa.table([pa.array(range(1000)), column], schema=schema))

    for size in ("64MB", "10k"):
        found = score(tmp_path / "a.parquet", partition_size=size, workers=2)
        assert found["s"].to_pylist() == [text for group in texts for text in group]
        assert found.schema.field("s").type == schema.field("s").type


def test_row_groups_of_any_size_keep_their_order(tmp_path: Path, score: Score) -> None:
    """Files with row groups of 0, 1 and many rows, and without any, give their rows in order."""
    schema = pa.schema([("x", pa.int64())])
    sizes = [[1, 500, 3, 70], [], [2000], [0], [5, 5]]
    paths, start = [], 0
    for i, groups in enumerate(sizes):
        paths.append(tmp_path / f"{i}.parquet")
        with pq.ParquetWriter(paths[-1], schema) as writer:
            for rows in groups:
                writer.write_table(pa.table({"x": range(start, start + rows)}, schema=schema))
                start += rows

    for size in ("64MB", "1k"):
        assert score(paths, partition_size=size, workers=2)["x"].to_pylist() == [*range(start)]


@pytest.mark.parametrize("columns", [3, 16, 17, 50])
def test_a_row_group_of_many_columns_gives_the_rows_of_a_narrow_one(columns: int, tmp_path: Path) -> None:
    """Read whole or streamed, with nulls and without: rows, order and types are those of the file."""
    values = np.random.default_rng(columns).standard_normal((columns, 40_000)).astype(np.float32)
    made = {f"c{i}": pa.array(row, mask=row > 2) for i, row in enumerate(values)}
    table = pa.table(made | {"id": pa.array(range(40_000), pa.int32())})
    pq.write_table(table, tmp_path / "wide.parquet", row_group_size=35_000)
    (source,) = files.resolve([str(tmp_path / "wide.parquet")], None)
    (part,) = inputs.module("parquet").split(source, 1 << 40, COMMON)
    names = ["id", *(f"c{i}" for i in reversed(range(columns)))]
    reading = Reading(schema_=table.schema, columns=tuple(names), batch_rows=1024)

    *blocks, extent = inputs.read(part, reading)

    batches = [block.batch for block in blocks if isinstance(block, Block)]
    assert pa.Table.from_batches(batches).equals(table.select(names))
    assert max(batch.num_rows for batch in batches) <= 16_384
    assert extent == Extent(0, 2)


def test_a_name_that_begins_like_another_is_not_taken_for_it(tmp_path: Path) -> None:
    """In a file of many columns, read a few at a time, c and c.x are each themselves."""
    names = ["c", *(f"n{i}" for i in range(20)), "c.x"]
    table = pa.table({name: pa.array(range(i, 20_000 + i), pa.int64()) for i, name in enumerate(names)})
    pq.write_table(table, tmp_path / "names.parquet")
    sources = files.resolve([str(tmp_path / "names.parquet")], None)
    (part,) = inputs.module("parquet").split(sources[0], 1 << 40, COMMON)

    found = inputs.look(sources, Wish())
    *blocks, _ = inputs.read(part, Reading(schema_=table.schema, columns=tuple(names), batch_rows=1024))

    assert found.sample.equals(table.slice(0, found.sample.num_rows).combine_chunks().to_batches()[0])
    assert pa.Table.from_batches([b.batch for b in blocks if isinstance(b, Block)]).equals(table)


@pytest.mark.parametrize("columns", [3, 17])
def test_a_range_of_rows_of_many_columns_is_that_range(columns: int, tmp_path: Path) -> None:
    """Cut in the middle of batches, the ranges of a wide row group are the rows of the file."""
    values = np.random.default_rng(columns).standard_normal((columns, 40_000)).astype(np.float32)
    table = pa.table({f"c{i}": pa.array(row, mask=row > 2) for i, row in enumerate(values)})
    pq.write_table(table, tmp_path / "wide.parquet")
    sources = files.resolve([str(tmp_path / "wide.parquet")], None)
    reading = Reading(schema_=table.schema, columns=tuple(table.column_names), batch_rows=1024)

    made = cutting.partitions(sources, 100_000, COMMON, 7)

    items = [item for each in made for part in each.slices for item in inputs.read(part, reading)]
    batches = [item.batch for item in items if isinstance(item, Block)]
    assert 1 < len(made) <= 7
    assert pa.Table.from_batches(batches).equals(table)


@pytest.mark.parametrize("groups", [0, 1])
def test_parquet_without_rows_gives_an_empty_output(groups: int, tmp_path: Path, score: Score) -> None:
    """No row group, or one of no rows, gives all columns and no rows."""
    schema = pa.schema([("x", pa.int64()), ("s", pa.string())])
    with pq.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for _ in range(groups):
            writer.write_table(pa.Table.from_batches([], schema))

    found = score(tmp_path / "a.parquet")

    assert (found.num_rows, found.column_names) == (0, ["x", "s", "y"])


def test_names_with_dots_are_names(tmp_path: Path, score: Score) -> None:
    """A column a.b beside a struct a with a field b is not mixed up with it."""
    table = pa.table({"a": [{"b": 1}], "x": [1], "a.b": ["text"]})

    found = score(written(tmp_path / "a.parquet", table))

    assert found.drop_columns(["y"]).to_pylist() == table.to_pylist()


def test_required_columns_are_read_like_others(tmp_path: Path, score: Score) -> None:
    """Whether a column may be null is no difference between files."""
    for name, nullable in (("a", True), ("b", False)):
        schema = pa.schema([pa.field("x", pa.int64(), nullable=nullable)])
        pq.write_table(pa.table({"x": [1]}, schema=schema), tmp_path / f"{name}.parquet")

    assert score(tmp_path).num_rows == 2


def test_one_huge_row_group_streams(tmp_path: Path) -> None:
    """A row group of a million rows is read in pieces: memory does not grow with it."""
    rows = 1_000_000
    numbers = np.arange(rows)
    table = pa.table({"x": numbers, "s": pa.array(numbers).cast(pa.string())})
    path = written(tmp_path / "a.parquet", table, row_group_size=rows)
    size = table.nbytes
    del table
    sources = files.resolve([str(path)])
    reading = inputs.Reading(schema_=inputs.look(sources, Wish()).schema, columns=("x", "s"), batch_rows=1024)
    (partition,) = cutting.partitions(sources, 1 << 30)
    before, most, seen = pa.total_allocated_bytes(), 0, 0

    for item in inputs.read(partition.slices[0], reading):
        if isinstance(item, inputs.Block):
            seen += item.batch.num_rows
            most = max(most, pa.total_allocated_bytes() - before)

    assert seen == rows
    assert most < size / 2


ASKED = [(1 << 62, 30_000, True), (25 << 30, 30_000, True), (25 << 30, 1 << 20, False), (1 << 30, 1, False)]


@pytest.mark.parametrize(("asked", "size", "damaged"), ASKED)
def test_an_absurd_size_is_damage_and_no_want_of_memory(
    asked: int, size: int, damaged: bool, tmp_path: Path
) -> None:
    """A size that no file of its length can hold is told as damage (65), not as memory that ran out (75)."""
    path = tmp_path / "a.arrow"
    path.write_bytes(b"x" * size)

    with pytest.raises(DataError if damaged else MemoryError), translated(str(path)):
        raise pa.lib.ArrowMemoryError(f"malloc of size {asked} failed")


def test_what_arrow_cannot_read_is_not_taken_for_damage() -> None:
    """A file that is whole, but of a kind that Arrow lacks, is told as such."""
    with pytest.raises(DataError, match=r"a\.parquet: holds what Arrow cannot read"), translated("a.parquet"):
        raise pa.ArrowNotImplementedError("Nested data conversions")
