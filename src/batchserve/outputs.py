"""Writes one part and its receipt. The receipt is the commit: the first one linked wins."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, TypeAdapter

from batchserve import storage
from batchserve.rejects import Place, Reject
from batchserve.stopwatch import Stopwatch
from batchserve.storage import translated_writing

ROW_GROUP_ROWS = 65_536
ROW_GROUP_BYTES = 32 << 20
"""A row group is closed at the first of the two, whatever the readers' batches are."""
COMPRESSION = "snappy"

REJECTS_MODE = 0o600
"""Rejects hold raw records: nobody but their owner reads them."""

PLAN_KEY = "batchserve.plan_id"


@dataclass(frozen=True)
class Workspace:
    """The folder beside the output where parts and receipts wait to be published."""

    path: str
    plan_id: str
    footer: tuple[tuple[str, str], ...]
    """Key-values of every part's footer: the same for all, or parts could not be glued."""

    def file(self, name: str) -> Path:
        """Return the path of a file in the workspace."""
        return Path(self.path) / name


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group, as the bytes it has in any file it is copied to."""

    rows: int
    size_bytes: int
    sha256: str


class Amendment(BaseModel, frozen=True):
    """A column whose planned type does not hold a text that was met."""

    column: str
    becomes: str
    place: Place
    value: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What scoring a partition found out, besides the part itself."""

    rows_in: int
    """Records read, rejected ones included."""
    rows_rejected: int
    bytes_in: int
    extents: tuple[tuple[int, int], ...]
    """Exact start and stop of every slice."""
    records: tuple[int, ...]
    """Records of every slice, rejected ones included."""
    refused: tuple[int, ...]
    """Rows that the model was given and that were rejected then: how many it was given before each."""
    rejected_by: dict[str, int]
    """Rejects by class and column: `MISSING age`."""
    nulls: dict[str, int]
    """Rows with a null, or a null in their list, per model column."""
    rounded: dict[str, int]
    """Integers that the model's float type has no digits for, per column."""
    nonfinite: dict[str, int]
    """Rows with an infinite or NaN score, per prediction."""
    amendments: tuple[Amendment, ...]
    seconds: dict[str, float]
    """By stage: of wall time."""
    waited_s: dict[str, float] = field(default_factory=dict)
    """By stage: how many of its seconds the thread did not run, for a disk, a lock or a CPU."""
    halved_batches: int = 0
    """Runs of the model that were split in two because memory ran out."""
    read_retries: int = 0
    """Times the partition was begun again because reading failed for the moment."""


class PartReject(BaseModel, frozen=True):
    """One line of the rejects of a part."""

    slice: int
    """Number of its slice in the partition."""
    reject: Reject


class RejectsFile(BaseModel, frozen=True):
    """The rejects of a part, or of an output."""

    name: str
    rows: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a part says of itself. A part without a receipt is litter.

    A job holds one for each partition: as models of pydantic, 100,000 of them took 525 MB.
    """

    partition: int
    plan_id: str
    part: str
    """File name of the part in the workspace."""
    rows_out: int
    size_bytes: int
    sha256: str
    row_groups: tuple[RowGroup, ...]
    facts: Facts
    rejects: RejectsFile | None = None
    """None if every row was scored."""

    @property
    def files(self) -> tuple[tuple[str, int, str], ...]:
        """Name, size in bytes and sha256 of every file that the receipt stands for."""
        part = (self.part, self.size_bytes, self.sha256)
        rejects = self.rejects
        return (part, (rejects.name, rejects.size_bytes, rejects.sha256)) if rejects else (part,)

    def with_time(self, stage: str, watch: Stopwatch) -> "Receipt":
        """Return the receipt with the time of what came after it was written, which it cannot hold itself."""
        facts = self.facts
        seconds = facts.seconds | {stage: facts.seconds.get(stage, 0) + watch.seconds}
        waited_s = facts.waited_s | {stage: facts.waited_s.get(stage, 0) + watch.waited_s}
        return replace(self, facts=replace(facts, seconds=seconds, waited_s=waited_s))

    def as_json(self) -> str:
        """Return the receipt as it is stored and sent."""
        return _RECEIPT.dump_json(self).decode()

    @staticmethod
    def of_json(text: str | bytes) -> "Receipt":
        """Return the receipt that `as_json` gave.

        Raises:
            ValueError: It is none.
        """
        return _RECEIPT.validate_json(text)


_RECEIPT = TypeAdapter(Receipt)


def committed(workspace: Workspace, name: str) -> Receipt | None:
    """Return the receipt of part `name`, or None if no attempt has committed it.

    A receipt counts if it is whole, of this plan (a task of another one may have come late), and
    its files are there: a power loss may keep one name of a folder and lose another.
    """
    path = workspace.file(f"{name}.json")
    with translated_writing(workspace.path):
        if storage.disk.size_bytes(path) is None:
            return None
        try:
            receipt = Receipt.of_json(storage.unseal(storage.disk.read(path)))
        except ValueError:
            return None
        there = all(storage.disk.size_bytes(workspace.file(name)) == size for name, size, _ in receipt.files)
    return receipt if there and receipt.plan_id == workspace.plan_id else None


class PartWriter:
    """Collects rows into row groups of a new Parquet file."""

    def __init__(
        self, workspace: Workspace, name: str, schema: pa.Schema, coded: Sequence[str], sink: storage.Sink
    ) -> None:
        self._workspace = workspace
        self._name = name
        self._schema = schema.with_metadata(dict(workspace.footer))
        self._sink = sink
        self._writer = pq.ParquetWriter(
            self._sink, self._schema, compression=COMPRESSION, use_dictionary=list(coded),
            write_page_checksum=True,
        )  # fmt: skip
        self._sink.section_sha256()  # the magic bytes belong to no row group
        self._offset = self._sink.size_bytes
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = self._pending_bytes = 0
        self._row_groups: list[RowGroup] = []
        self._rejects: storage.Sink | None = None
        self._rejected = 0

    def reject(self, slice_: int, reject: Reject) -> None:
        """Append a row that cannot be scored to the part's rejects, which only its owner may read."""
        if self._rejects is None:
            self._rejects = storage.Sink(self._sink.path.with_suffix(".rejects.jsonl"))
            storage.disk.set_mode(self._rejects.path, REJECTS_MODE)
        line = PartReject(slice=slice_, reject=reject).model_dump_json()
        self._rejects.write(line.encode() + b"\n")
        self._rejected += 1

    def write(self, kept: pa.RecordBatch, predictions: Sequence[pa.Array]) -> None:
        """Append rows: the columns that pass through, then the predictions."""
        columns = [*kept.columns, *predictions]
        batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        self._pending_bytes += batch.nbytes
        if self._pending_rows >= ROW_GROUP_ROWS or self._pending_bytes >= ROW_GROUP_BYTES:
            self._write_row_group()

    def _write_row_group(self) -> None:
        table = pa.Table.from_batches(self._pending, self._schema)
        self._writer.write_table(table, row_group_size=table.num_rows)
        size = self._sink.size_bytes - self._offset
        digest = self._sink.section_sha256()
        self._row_groups.append(RowGroup(rows=table.num_rows, size_bytes=size, sha256=digest))
        self._offset = self._sink.size_bytes
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0

    def finish(self) -> None:
        """Write what is pending and the footer, and make the files durable: the rejects first."""
        if self._rejects:
            self._rejects.sync()
        if self._pending_rows:
            self._write_row_group()
        self._writer.close()
        self._sink.sync()

    def commit(self, partition: int, facts: Facts) -> Receipt:
        """Link the receipt of the finished part; if another attempt was first, return its own."""
        receipt = Receipt(
            partition=partition, plan_id=self._workspace.plan_id, part=self._sink.path.name,
            rows_out=sum(group.rows for group in self._row_groups),
            size_bytes=self._sink.size_bytes, sha256=self._sink.sha256(),
            row_groups=tuple(self._row_groups), rejects=self._rejects_file(), facts=facts,
        )  # fmt: skip
        temporary = self._workspace.file(f"{self._sink.path.stem}.json.tmp")
        path = self._workspace.file(f"{self._name}.json")
        storage.write_durable(temporary, storage.seal(receipt.as_json()))
        if storage.disk.size_bytes(path) is not None and committed(self._workspace, self._name) is None:
            storage.remove(path)
        if storage.link_first(temporary, path):
            return receipt
        self.discard()
        return committed(self._workspace, self._name) or receipt

    @property
    def writing(self) -> Stopwatch:
        """What measured how long bytes took to the disk; the rest was encoding them."""
        return self._sink.watch

    def _rejects_file(self) -> RejectsFile | None:
        sink = self._rejects
        if sink is None:
            return None
        return RejectsFile(
            name=sink.path.name, rows=self._rejected, size_bytes=sink.size_bytes, sha256=sink.sha256()
        )

    def discard(self) -> None:
        """Remove the files: no receipt names them."""
        for sink in (self._sink, self._rejects):
            if sink:
                sink.discard()


@contextmanager
def open_part(
    workspace: Workspace, name: str, schema: pa.Schema, coded: Sequence[str] = ()
) -> Iterator[PartWriter]:
    """Open a new part; if the block fails before `commit`, nothing of it is left.

    Args:
        workspace: Where it goes.
        name: Of the partition.
        schema: Its columns.
        coded: Those that are written with a dictionary.
    """
    with translated_writing(workspace.path):
        sink = storage.Sink(workspace.file(f"{name}.{uuid.uuid4().hex[:12]}.parquet"))
        part = None
        try:
            part = PartWriter(workspace, name, schema, coded, sink)
            yield part
        except BaseException:
            (part or sink).discard()
            raise


def dictionaries(schema: pa.Schema, sample: pa.RecordBatch | None = None) -> tuple[str, ...]:
    """Return the columns worth a dictionary: those whose values come again and again.

    A dictionary of values that do not takes two to five times as long to write, and more room; of
    those that do it takes half the room. Where nobody has seen values, floats count as the first kind.

    Args:
        schema: The columns of an output.
        sample: Some rows of some of the columns.
    """
    return tuple(field.name for field in schema if _comes_again(field, sample))


_SEEN_ROWS = 64
"""So many values must have been seen for a column to be judged by them."""


def _comes_again(field: pa.Field, sample: pa.RecordBatch | None) -> bool:
    if pa.types.is_nested(field.type):
        return False
    if sample is not None and field.name in sample.schema.names:
        values = sample.column(field.name)
        seen = len(values) - values.null_count
        with suppress(pa.ArrowNotImplementedError):  # Arrow cannot look at every type
            coded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
            if seen >= _SEEN_ROWS:
                return bool(2 * len(coded.dictionary) <= seen)
    return not pa.types.is_floating(field.type)
