"""Files made by chance, scored, and compared with readers that know nothing of batchserve.

A case is a schema, values, a format and how a job is cut. What must come out is read with Python's
csv and json modules or with Arrow, and predicted by onnxruntime called directly (`oracle`); where
Polars and DuckDB read a CSV alike, it must be what they read, too.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import hypothesis
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import batchserve as bs
import models
import oracle

Texts = list[str | None]
"""One row of a text file; None is a null."""

# -- values -----------------------------------------------------------------------------------

HARD = (
    "plain", "NA", "null", "", "two\nlines", 'says "so"', "a,b;c|d\te", "it's", "007", "+5", " blanks ",
    "end\r\n",
    '"', "''", "\n\n", "caf\u00e9", "x" * 300, "1,2,3\n" * 20, ",", "true", "{}", "\\", "#no",
)  # fmt: skip
POOLS: dict[str, tuple[str, ...]] = {
    "int64": ("0", "-7", "42", "9223372036854775807", "-9223372036854775808", "1000000"),
    "small": ("0", "1", "-3", "77", "4096"),
    "double": ("0.5", "-2.25", "3", "123456.789", "3.141592653589793", "0.001", "-1e-5", "1e300"),
    "real": ("0.5", "-2.25", "3", "0.1", "1000.125", "-7e-3"),
    "bool": ("true", "false"),
    "date": ("2013-01-31", "1999-12-31", "2024-02-29"),
    "timestamp": ("2013-01-31T10:00:00", "1999-12-31 23:59:59.25", "2024-02-29T00:00:00"),
    "code": ("007", "0814", "12", "99999999999999999999"),
    "text": ("some words", *HARD),
    "kind": ("red", *models.KINDS, "unknown", "two\nlines"),
}
"""Texts of a column by its kind; the first one alone tells the kind."""
TYPES = {
    "int64": pa.int64(), "small": pa.int64(), "double": pa.float64(), "real": pa.float64(),
    "bool": pa.bool_(), "date": pa.date32(), "timestamp": pa.timestamp("us"),
}  # fmt: skip
NULLS = ("", "NA", "NaN", "null", "N/A")
"""What is a null in a typed column of a CSV; in one of text only an empty text is."""
MODELS: dict[str, tuple[Callable[[Path], Path], dict[str, str], bool]] = {
    "named": (models.named, {"a": "real", "b": "small", "kind": "kind"}, False),
    "wide": (models.wide, {"a": "real", "b": "real", "c": "small", "d": "real"}, True),
    "tensor": (models.tensor, {"a": "real", "b": "real", "c": "small", "d": "real"}, True),
    "integers": (models.integers, {"i": "small", "y": "double"}, False),
    "texts": (models.texts, {"kind": "kind"}, False),
}
"""The function that writes it, its columns, and whether they fill one wide input."""
WHOLE = ("i", "kind")
"""Model columns without nulls: an int64 and a text have no NaN."""


def typed(kind: str, text: str | None) -> Any:
    """Return the value that a text of a CSV stands for."""
    if kind not in TYPES:
        return text or None
    if text is None or text in NULLS:
        return None
    values: dict[str, Callable[[str], Any]] = {
        "int64": int, "small": int, "double": float, "real": float, "bool": lambda text: text == "true",
        "date": date.fromisoformat, "timestamp": datetime.fromisoformat,
    }  # fmt: skip
    return values[kind](text)


# -- cases ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What is scored, and how."""

    model: str
    others: tuple[str, ...]
    """Kinds of the columns that the model does not read."""
    rows: int
    files: int
    form: str
    codec: str
    delimiter: str
    quote: str
    end: str
    encoding: str
    told: bool
    """Whether the dialect is said; the common one may be found."""
    partition_bytes: int
    workers: int
    batch_rows: int
    chance: int

    @property
    def kinds(self) -> dict[str, str]:
        """Every column and its kind."""
        return MODELS[self.model][1] | {f"c{i}": kind for i, kind in enumerate(self.others)}

    @property
    def is_text(self) -> bool:
        """Whether the files are text."""
        return self.form in {"csv", "tsv", "jsonl"}


def cases() -> st.SearchStrategy[Case]:
    """Return what Hypothesis draws cases from."""
    return st.builds(
        Case,
        model=st.sampled_from(sorted(MODELS)),
        others=st.lists(st.sampled_from(sorted(POOLS)), max_size=4).map(tuple),
        rows=st.integers(1, 400),
        files=st.sampled_from((1, 1, 3)),
        form=st.sampled_from(("csv", "csv", "csv", "tsv", "jsonl", "parquet", "arrow", "arrows")),
        codec=st.sampled_from(("", "", "", "gz", "bz2", "zst", "xz")),
        delimiter=st.sampled_from(",,;|\t"),
        quote=st.sampled_from('""\''),
        end=st.sampled_from(("\n", "\n", "\r\n", "\r")),
        encoding=st.sampled_from(("utf-8", "utf-8", "utf-8-sig", "cp1252", "utf-16")),
        told=st.booleans(),
        partition_bytes=st.sampled_from((1_000, 2_000, 7_000, 1 << 20)),
        workers=st.integers(1, 3),
        batch_rows=st.sampled_from((64, 1024)),
        chance=st.integers(0, 2**32),
    )


def table(case: Case) -> list[Texts]:
    """Return the rows of a case; the first one tells every column's kind."""
    chance = random.Random(case.chance)
    first: Texts = [POOLS[kind][0] for kind in case.kinds.values()]
    others = range(case.rows - 1)
    return [first, *([_value(name, kind, case, chance) for name, kind in case.kinds.items()] for _ in others)]


def _value(name: str, kind: str, case: Case, chance: random.Random) -> str | None:
    if name not in WHOLE and chance.random() < 0.1:
        return None
    text = chance.choice(POOLS[kind])
    return text.replace("\r", "") if case.end == "\r" else text


# -- files ------------------------------------------------------------------------------------


def write(case: Case, rows: Sequence[Texts], folder: Path) -> list[Path]:
    """Write the rows of a case into its files, as evenly as may be."""
    size = -(-len(rows) // case.files)
    pieces = [rows[at : at + size] for at in range(0, len(rows), size)]
    return [_written(case, piece, folder / f"part{i}.{case.form}") for i, piece in enumerate(pieces)]


def _written(case: Case, rows: Sequence[Texts], path: Path) -> Path:
    if not case.is_text:
        _arrow(case, rows, path)
        return path
    raw = _json(case, rows) if case.form == "jsonl" else _csv(case, rows)
    if case.codec:
        path = path.with_name(f"{path.name}.{case.codec}")
    path.write_bytes(PACK[case.codec](raw))
    return path


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
    "zst": lambda raw: pa.compress(raw, "zstd", asbytes=True) if raw else raw,
}  # fmt: skip


def _csv(case: Case, rows: Sequence[Texts]) -> bytes:
    chance = random.Random(case.chance + 1)
    delimiter = "\t" if case.form == "tsv" else case.delimiter
    lines = [
        [_null(kind, chance) if text is None else text for kind, text in _pairs(case, row)] for row in rows
    ]
    text = io.StringIO(newline="")
    # Where records end in \r, Python's writer leaves a text with \n as it is.
    quoting: Any = csv.QUOTE_ALL if case.end == "\r" else chance.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    csv.writer(
        text, delimiter=delimiter, quotechar=case.quote, lineterminator=case.end, quoting=quoting
    ).writerows([list(case.kinds), *lines])
    return text.getvalue().encode(case.encoding)


def _pairs(case: Case, row: Texts) -> Iterator[tuple[str, str | None]]:
    return zip(case.kinds.values(), row, strict=True)


def _null(kind: str, chance: random.Random) -> str:
    return chance.choice(NULLS) if kind in TYPES else ""


JSON_TYPES = ("int64", "small", "double", "real", "bool")


def _json(case: Case, rows: Sequence[Texts]) -> bytes:
    chance = random.Random(case.chance + 1)
    lines = []
    for row in rows:
        values = {
            name: typed(kind, text) if kind in JSON_TYPES else text
            for name, (kind, text) in zip(case.kinds, _pairs(case, row), strict=True)
            if text is not None or chance.random() < 0.5
        }
        lines.append(json.dumps(values, ensure_ascii=chance.random() < 0.5))
    return "".join(line + ("\r\n" if case.end == "\r\n" else "\n") for line in lines).encode()


def _arrow(case: Case, rows: Sequence[Texts], path: Path) -> None:
    made = _typed_table(case, rows)
    size = max(1, len(rows) // 3)
    if case.form == "parquet":
        pq.write_table(made, path, row_group_size=size, compression="zstd" if case.codec else "snappy")
        return
    make = pa.ipc.new_file if case.form == "arrow" else pa.ipc.new_stream
    with make(str(path), made.schema) as sink:
        sink.write_table(made, max_chunksize=size)


def _typed_table(case: Case, rows: Sequence[Texts]) -> pa.Table:
    columns = {}
    for i, (name, kind) in enumerate(case.kinds.items()):
        values = [typed(kind, row[i]) if kind in TYPES else row[i] for row in rows]
        columns[name] = pa.array(values, TYPES.get(kind, pa.string()))
    columns["amount"] = pa.array([Decimal(i) / 4 for i in range(len(rows))], pa.decimal128(12, 2))
    columns["list"] = pa.array([[i, None] if i % 3 else None for i in range(len(rows))], pa.list_(pa.int32()))
    return pa.table(columns)


# -- the other readers ------------------------------------------------------------------------


def expected(case: Case, paths: Sequence[Path], rows: Sequence[Texts]) -> pa.Table:
    """Read files back by Python's own modules or by Arrow: what must come out, but for predictions."""
    if case.form == "parquet":
        return pa.concat_tables([pq.read_table(path) for path in paths])
    if case.form in {"arrow", "arrows"}:
        return pa.concat_tables([_ipc(path) for path in paths])
    texts = [text for path in paths for text in _texts(case, path)]
    columns = {}
    for i, (name, kind) in enumerate(case.kinds.items()):
        values = [row[i] for row in texts]
        if case.form == "jsonl":
            columns[name] = pa.array(values, TYPES[kind] if kind in JSON_TYPES else pa.string())
        else:
            columns[name] = pa.array([typed(kind, text) for text in values], TYPES.get(kind, pa.string()))
    assert len(texts) == len(rows)
    return pa.table(columns)


def _ipc(path: Path) -> pa.Table:
    raw = path.read_bytes()
    return (pa.ipc.open_file if raw.startswith(b"ARROW1") else pa.ipc.open_stream)(raw).read_all()


def _texts(case: Case, path: Path) -> list[list[Any]]:
    raw = _unpacked(path)
    if case.form == "jsonl":
        return [[each.get(name) for name in case.kinds] for each in map(json.loads, raw.splitlines())]
    delimiter = "\t" if case.form == "tsv" else case.delimiter
    lines = io.StringIO(raw.decode(case.encoding), newline="")
    _, *rows = csv.reader(lines, delimiter=delimiter, quotechar=case.quote)
    return rows


def _unpacked(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.suffix == ".zst":
        return pa.CompressedInputStream(pa.py_buffer(raw), "zstd").read()  # type: ignore[no-any-return]  # pyarrow has no types
    unpack: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress,
    }  # fmt: skip
    return unpack.get(path.suffix, bytes)(raw)


def agreed(case: Case, path: Path) -> list[Texts] | None:
    """Return the rows of a CSV if Polars and DuckDB read it, and read it alike; an empty text is None."""
    if case.form not in {"csv", "tsv"} or case.encoding not in {"utf-8", "utf-8-sig"} or case.codec:
        return None
    delimiter = "\t" if case.form == "tsv" else case.delimiter
    found: list[list[Texts]] = []
    with suppress(pl.exceptions.PolarsError, duckdb.Error):
        frame = pl.read_csv(
            path, separator=delimiter, quote_char=case.quote, infer_schema=False,
            eol_char="\r" if case.end == "\r" else "\n",
        )  # fmt: skip
        read = duckdb.read_csv(
            str(path), sep=delimiter, quotechar=case.quote, escapechar=case.quote, header=True,
            all_varchar=True, sample_size=-1,
        )  # fmt: skip
        found = [[[text or None for text in row] for row in rows] for rows in (frame.rows(), read.fetchall())]
    return found[0] if found and found[0] == found[1] else None


# -- one case, many cases ---------------------------------------------------------------------


@dataclass
class Figures:
    """What was compared."""

    cases: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    partitions: int = 0
    agreed: int = 0
    """Files that Polars and DuckDB read alike, as the oracle does."""
    faults: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, str | int]:
        """Return the figures."""
        return {
            "jobs equal to the oracle, to the bit": self.cases.total() - len(self.faults),
            **{f"jobs on {form}": count for form, count in sorted(self.cases.items())},
            "rows compared": self.rows,
            "partitions": self.partitions,
            "CSV files read alike by Polars and DuckDB": self.agreed,
            "jobs that differ": len(self.faults),
        }


def check(case: Case, folder: Path, figures: Figures) -> None:
    """Score a case and compare what comes out.

    Raises:
        AssertionError: Something differs.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    make, columns, wide = MODELS[case.model]
    model, rows = make(folder), table(case)
    paths = write(case, rows, folder)
    wanted = expected(case, paths, rows)
    features = tuple(columns) if wide else ()
    figures.cases[f"{case.form}{'.' * bool(case.codec and case.is_text)}{case.codec * case.is_text}"] += 1

    report = bs.score(
        paths, folder / "out.parquet", model=model, features=features, partition_size=case.partition_bytes,
        workers=case.workers, batch_rows=case.batch_rows, **_nulls(columns), **_said(case),
    )  # fmt: skip

    got = pq.read_table(folder / "out.parquet")
    figures.rows += len(got)
    figures.partitions += report.partitions
    for name in wanted.column_names:
        _equal(got[name], wanted[name], name)
    frame = wanted.select(list(columns)).to_pandas(types_mapper=_PANDAS.get)
    predicted = oracle.predict(model, frame, features, case.batch_rows)
    assert got.column_names == [*wanted.column_names, *predicted]
    plain = got.select(list(predicted)).to_pandas()
    for name, values in predicted.items():
        assert oracle.same(plain[name], values), name
    _compare_others(case, paths, figures)


def _nulls(columns: dict[str, str]) -> Any:
    return {"on_null": [f"{name}:nan" for name in columns if name not in WHOLE]}


def _said(case: Case) -> Any:
    """Return what is said of the dialect: what no common CSV has must be."""
    if case.form not in {"csv", "tsv"}:
        return {}
    encoding = {} if case.encoding.startswith("utf") else {"encoding": case.encoding}
    if not case.told and (case.delimiter, case.quote, case.form) == (",", '"', "csv"):
        return encoding
    delimiter = "\t" if case.form == "tsv" else case.delimiter
    return encoding | {
        "delimiter": delimiter, "quote": case.quote, "escape": "none", "header": "yes", "skip_lines": 0,
    }  # fmt: skip


def _equal(got: pa.ChunkedArray, wanted: pa.ChunkedArray, name: str) -> None:
    assert got.type == wanted.type, f"{name}: {got.type} is not {wanted.type}"
    if got != wanted:
        wrong = [(i, *pair) for i, pair in enumerate(zip(got.to_pylist(), wanted.to_pylist(), strict=True))]
        raise AssertionError(f"{name}: {[each for each in wrong if each[1] != each[2]][:3]}")


def _compare_others(case: Case, paths: Sequence[Path], figures: Figures) -> None:
    for path in paths:
        theirs = agreed(case, path)
        if theirs is not None:
            assert theirs == [[text or None for text in row] for row in _texts(case, path)]
            figures.agreed += 1


_PANDAS: dict[Any, Any] = {
    pa.int64(): pd.Int64Dtype(), pa.float64(): pd.Float64Dtype(), pa.string(): pd.StringDtype(),
}  # fmt: skip


def run(home: Path, count: int, seed: int) -> Figures:
    """Check `count` cases; a case that differs is made as simple as may be, and told."""
    figures = Figures()

    @hypothesis.seed(seed)
    @settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(cases())
    def each(case: Case) -> None:
        check(case, home / "case", figures)

    try:
        each()
    except Exception as error:  # noqa: BLE001  whatever it is, it is told
        figures.faults.append(f"{error!r} {' '.join(getattr(error, '__notes__', ()))}")
    return figures
