"""What a data file holds, in words: its format, rows, columns, and how it is stored."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet as pq

from batchserve import config, inputs
from batchserve.errors import NotFoundError, UsageError
from batchserve.inputs import OPEN_END, Look, Slice, Source, Wish, cutting, files, ipc, packed, records
from batchserve.inputs.dialect import Asked, Dialect
from batchserve.inputs.files import Given
from batchserve.inputs.parquet import opened
from batchserve.report import human_bytes
from batchserve.storage import transient_reading, translated

_COUNTED_BYTES = 16 << 20
"""Text up to this size is read whole to count its records; of more, the first of it is."""
_SAMPLE_BYTES = 1 << 20
_ROWS_SHOWN = 3
_VALUE_CHARACTERS = 100
_ONNX_START = b"\x08"
"""The tag of an ONNX model's first field; no text file starts with a backspace."""
_NAMES = {"csv": "CSV", "jsonl": "JSON lines", "parquet": "Parquet", "arrow": "Arrow"}


def is_data(path: str) -> bool:
    """Whether a file is no ONNX model, by its first byte and its suffix.

    Raises:
        NotFoundError: There is no such file.
        UsageError: It is a folder.
    """
    file = Path(path)
    if file.is_dir():
        raise UsageError(f"{path}: is a folder", "name a file in it")
    if not file.exists():
        siblings = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        raise NotFoundError.of("file", path, siblings)
    with translated(path), file.open("rb") as stream:
        return stream.read(1) != _ONNX_START and file.suffix.lower() != ".onnx"


def described(path: str, **said: Any) -> dict[str, str]:
    """Return what a data file holds, in words.

    Rows are exact, but for text over 16 MiB: there they are estimated from its beginning.

    Args:
        path: The file.
        **said: Format and dialect, as far as they are not to be found.

    Raises:
        DataError: The file is damaged.
        UsageError: What is said of it makes no sense.
    """
    job = config.load(said, [path]).job
    (source,) = files.resolve([path], job.format or _format(path))
    look = inputs.look([source], Wish(asked=Asked.of(job)))
    more, rows = _stored(source, look)
    facts = {
        "format": _NAMES[source.format] + (f", packed with {source.codec}" if source.codec else ""),
        "size": human_bytes(source.size_bytes),
        "rows": rows,
        "columns": f"{len(look.schema):,}",
    }
    return facts | more | _columns(look) | _rows(look)


def _format(path: str) -> Given | None:
    """Return the format of a file whose suffix tells nothing, from what is in it."""
    if files.suffix_format(Path(path)):
        return None
    with translated(path), Path(path).open("rb") as file:
        magic = file.read(packed.MAGIC_BYTES)
    if magic.startswith(b"PAR1"):
        return "parquet"
    if magic.startswith((ipc.FILE_MAGIC, ipc.STREAM_MAGIC)):
        return "arrow"
    with records.opened(path, codec=packed.codec_of(magic)) as text:
        head = records.read_exactly(text, 1 << 16)
    return "jsonl" if head.lstrip().startswith(b"{") else "csv"


def _stored(source: Source, look: Look) -> tuple[dict[str, str], str]:
    """Return how a file is stored, and how many rows it has, in words."""
    if source.format == "parquet":
        with opened(source.path) as file:
            return _parquet(file.metadata), f"{file.metadata.num_rows:,}"
    if source.format == "arrow":
        return _arrow(source)
    written = {"dialect": str(look.found)} if source.format == "csv" else {}
    return written, _text_rows(source, look.found.dialect)


def _parquet(metadata: pq.FileMetaData) -> dict[str, str]:
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    most = max((group.num_rows for group in groups), default=0)
    packings = sorted({chunk.compression.lower() for chunk in chunks})
    unpacked = sum(group.total_byte_size for group in groups)
    facts = {
        "row groups": f"{len(groups):,}, the largest of {most:,} rows",
        "compression": f"{', '.join(packings) or 'none'}; {human_bytes(unpacked)} unpacked",
        "written by": metadata.created_by,
    }
    return facts | _key_values(metadata.metadata or {})


def _key_values(pairs: Mapping[bytes, bytes]) -> dict[str, str]:
    found = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in pairs.items()}
    return {key: _cut(value) for key, value in found.items() if key not in {"ARROW:schema", "pandas"}}


def _arrow(source: Source) -> tuple[dict[str, str], str]:
    rows, stored, metadata = ipc.survey(source.path)
    name = "record batches" if stored else "record batches of a stream"
    facts = {name: f"{len(rows):,}, the largest of {max(rows, default=0):,} rows"}
    return facts | _key_values(metadata), f"{sum(rows):,}"


def _text_rows(source: Source, dialect: Dialect) -> str:
    module: Any = inputs.module(source.format)
    part: Slice = module.split(source, OPEN_END, dialect)[0]
    if source.codec and source.size_bytes > _COUNTED_BYTES:
        return "not known without unpacking it"
    whole = source.size_bytes <= _COUNTED_BYTES
    head = part if whole else replace(part, stop=part.start + _SAMPLE_BYTES)
    with cutting.scan(head, dialect) as scan, transient_reading(source.path):
        count = cutting.count(scan, head, dialect)
        read_bytes = max(1, scan.at - part.start)
    if whole:
        return f"{count:,}"
    return f"about {(source.size_bytes - part.start) * count // read_bytes:,}"


def _columns(look: Look) -> dict[str, str]:
    rows = look.sample.num_rows
    facts = {}
    for field, column in zip(look.schema, look.sample.columns, strict=True):
        nulls = f", {column.null_count:,} of the first {rows:,} null" if column.null_count else ""
        facts[f"  {field.name}"] = f"{field.type}{nulls}"
    return facts


def _rows(look: Look) -> dict[str, str]:
    head = pa.Table.from_batches([look.sample.slice(0, _ROWS_SHOWN)]).to_pylist()
    return {
        f"row {i}": ", ".join(
            f"{name} {_cut(repr(value) if isinstance(value, str) else str(value))}"
            for name, value in row.items()
        )
        for i, row in enumerate(head, 1)
    }


def _cut(text: str) -> str:
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[:_VALUE_CHARACTERS]}..."
