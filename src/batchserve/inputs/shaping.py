"""Blocks of one file made blocks of the job: columns in order, filled, cast, and those no file holds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from batchserve.arrays import array_of
from batchserve.errors import DataError, UsageError, raise_all
from batchserve.inputs import (
    SOURCE_FILE,
    SOURCE_ROW,
    TEXT_FORMATS,
    BadRecord,
    Block,
    Item,
    Look,
    Reading,
    Slice,
    Source,
    Wish,
    folders,
)

_SOURCE = {SOURCE_FILE: pa.string(), SOURCE_ROW: pa.int64()}


@dataclass(frozen=True)
class Added:
    """Columns that are in no file: of its folders, and of where a row is from."""

    folders: dict[str, pa.DataType]
    source: dict[str, pa.DataType] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns that are added."""
        return (*self.folders, *self.source)


def added(sources: Sequence[Source], wish: Wish) -> Added:
    """Return the columns that are added to those of the files.

    Raises:
        DataError: Files lie in folders that give other columns.
    """
    return Added(folders.columns(sources, wish.types, wish.hints), _SOURCE if wish.add_source else {})


def widened(found: Look, more: Added, sources: Sequence[Source]) -> Look:
    """Add columns to what is known of the files.

    Raises:
        DataError: A file has a column of that name itself.
        UsageError: The same, for the columns of `--add-source`.
    """
    if not more.names:
        return found
    _check_clash(found.schema.names, more, sources)
    rows = found.sample.num_rows
    values = [_cycled(sources, name, kind, rows) for name, kind in more.folders.items()]
    if more.source:
        values += [_repeated(sources[0].path, pa.string(), rows), array_of(np.arange(1, rows + 1))]
    kinds = more.folders | more.source
    schema = pa.schema([*found.schema, *(pa.field(name, kind) for name, kind in kinds.items())])
    sample = pa.RecordBatch.from_arrays([*found.sample.columns, *values], schema=schema)
    return replace(found, schema=schema, sample=sample)


def _check_clash(names: Sequence[str], more: Added, sources: Sequence[Source]) -> None:
    source_hint = "leave --add-source out, or rename that column"
    raise_all([
        UsageError(f"--add-source: {name} is a column of the input already", source_hint)
        for name in more.source if name in {*names, *more.folders}
    ])  # fmt: skip
    raise_all([
        DataError(f"{sources[0].path}: column {name} is in the file and in the name of a folder above it",
            "rename the folders, or name the files one by one",
        )
        for name in more.folders if name in names
    ])  # fmt: skip


def _cycled(sources: Sequence[Source], name: str, kind: pa.DataType, rows: int) -> pa.Array:
    """Give sampled rows the values that folders have, in turn."""
    texts = dict.fromkeys(text for source in sources for key, text in source.folders if key == name)
    values = pa.concat_arrays([folders.value(text, kind) for text in texts])
    return values.take(array_of(np.arange(rows) % len(values)))


def _repeated(text: str | None, kind: pa.DataType, rows: int) -> pa.Array:
    return folders.value(text, kind).take(array_of(np.zeros(rows, np.int64)))


def own_reading(part: Slice, reading: Reading) -> Reading:
    """Return how a file's own columns are read, without those that are added to its rows.

    Text files name columns as the job does, by their position; the others have names of their own.
    """
    added = {name for name, _ in part.folders} | (set(_SOURCE) if part.add_source else set())
    if part.layout is None and not added:
        return reading
    names = [name for name in reading.schema_.names if name not in added]
    layout = part.layout or tuple((name, name) for name in names)
    own = {name: name if part.format in TEXT_FORMATS else file_name for file_name, name in layout}
    columns = [own[name] for name in reading.columns if name in own]
    fields = [reading.schema_.field(name).with_name(file_name) for name, file_name in own.items()]
    columns = columns or [fields[0].name]  # of no column at all nobody would know how many rows there are
    return reading.model_copy(update={"schema_": pa.schema(fields), "columns": tuple(columns)})


def shaped(part: Slice, reading: Reading, items: Iterator[Item]) -> Iterator[Item]:
    """Give every block the columns of the job.

    Raises:
        DataError: A value does not fit the type that holds the column in all files.
    """
    wanted = pa.schema([reading.schema_.field(name) for name in reading.columns])
    record = part.first_record
    for item in items:
        if isinstance(item, Block):
            batch = item.batch
            same = batch.schema.equals(wanted)
            yield item if same else replace(item, batch=_shaped(item, part, wanted, record))
            record += batch.num_rows
        else:
            record += isinstance(item, BadRecord)
            yield item


def _shaped(block: Block, part: Slice, wanted: pa.Schema, record: int) -> pa.RecordBatch:
    own = _names_in(part, block)
    texts = dict(part.folders)
    rows = block.batch.num_rows
    columns = []
    for each in wanted:
        if part.add_source and each.name == SOURCE_FILE:
            columns.append(_repeated(part.path, each.type, rows))
        elif part.add_source and each.name == SOURCE_ROW:
            columns.append(array_of(np.arange(record + 1, record + rows + 1)))
        elif each.name in texts:
            columns.append(_repeated(texts[each.name], each.type, rows))
        elif each.name in own:
            columns.append(_cast(block.batch.column(own[each.name]), each, part, record))
        else:
            columns.append(pa.nulls(rows, each.type))
    return pa.RecordBatch.from_arrays(columns, schema=wanted)


def _names_in(part: Slice, block: Block) -> dict[str, str]:
    """Return the names in a block of the job's columns that it holds."""
    there = dict.fromkeys(block.batch.schema.names)
    if part.layout is None or part.format in TEXT_FORMATS:
        return {name: name for name in there}
    return {name: own for own, name in part.layout if own in there}


def _cast(column: pa.Array, wanted: pa.Field, part: Slice, record: int) -> pa.Array:
    if column.type.equals(wanted.type):
        return column
    try:
        return column.cast(wanted.type)
    except pa.ArrowInvalid as error:
        place = f"column {wanted.name}, in the {len(column):,} rows after row {record:,}"
        raise DataError(
            f"{part.path}: {place}: a {column.type} does not fit {wanted.type} ({error})",
            "convert the file so that all have one type",
        ) from error
