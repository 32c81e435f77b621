"""Files -> partitions: where each is cut, and which records that gives it."""

import itertools
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial

from batchserve.inputs import (
    OPEN_END,
    TEXT_FORMATS,
    Look,
    Partition,
    Slice,
    Source,
    module,
    packed,
    patient,
    records,
)
from batchserve.inputs.dialect import COMMON, Dialect
from batchserve.storage import patiently, transient_reading


def partitions(
    sources: Sequence[Source], target_bytes: int, dialect: Dialect = COMMON, cuts: int = 1
) -> tuple[Partition, ...]:
    """Cut files into partitions of about `target_bytes`: big files apart, small ones together.

    Args:
        sources: The files in order.
        target_bytes: What a partition should have.
        dialect: How text files are written.
        cuts: How many slices the row groups of a file may be cut into.
    """
    groups: list[list[Slice]] = [[]]
    size = 0
    for source in sources:
        for part in patient(source.path, partial(_split, source, target_bytes, dialect, cuts)):
            alone = groups[-1] and (part.rows or groups[-1][-1].rows)
            if alone or (groups[-1] and size + part.size_bytes > target_bytes):
                groups.append([])
                size = 0
            groups[-1].append(part)
            size += part.size_bytes
    return tuple(Partition(index=i, slices=tuple(s)) for i, s in enumerate(g for g in groups if g))


def _split(source: Source, target_bytes: int, dialect: Dialect, cuts: int = 1) -> list[Slice]:
    more = {} if source.format in TEXT_FORMATS else {"cuts": cuts}
    parts: list[Slice] = module(source.format).split(source, target_bytes, dialect, **more)
    return [replace(part, folders=source.folders) for part in parts] if source.folders else parts


def grouped(
    source: Source, sizes: Sequence[tuple[int, int]], target_bytes: int, cuts: int = 1
) -> list[Slice]:
    """Cut a file between its row groups or record batches into ranges of about `target_bytes`.

    Args:
        source: The file.
        sizes: Rows and bytes of each row group or record batch.
        target_bytes: What a range should have.
        cuts: How many ranges all row groups may be cut into: each decodes the rows before its own, too.
    """
    most = cuts // max(1, len(sizes))
    pieces = [max(1, min(size // target_bytes, most, rows)) for rows, size in sizes]
    slices: list[Slice] = []
    first = 0
    for start, stop in itertools.pairwise(_edges([size for _, size in sizes], pieces, target_bytes)):
        rows = sum(each for each, _ in sizes[start:stop])
        part = Slice(
            path=source.path, format=source.format, start=start, stop=stop, exact=True, first_record=first,
            size_bytes=sum(size for _, size in sizes[start:stop]),
        )  # fmt: skip
        slices += _pieces(part, rows, pieces[start]) if stop > start and pieces[start] > 1 else [part]
        first += rows
    return slices


def _edges(sizes: Sequence[int], pieces: Sequence[int], target_bytes: int) -> list[int]:
    """Return where ranges of row groups begin, and the end; one that is cut is a range of its own."""
    if not sizes:
        return [0, 0]
    edges, size = [0], 0
    for i in range(1, len(sizes)):
        size += sizes[i - 1]
        if max(pieces[i - 1 : i + 1]) > 1 or size + sizes[i] > target_bytes:
            edges.append(i)
            size = 0
    return [*edges, len(sizes)]


def _pieces(part: Slice, rows: int, count: int) -> list[Slice]:
    edges = [rows * i // count for i in range(count + 1)]
    return [
        replace(part, rows=(a, b), first_record=part.first_record + a, size_bytes=part.size_bytes // count)
        for a, b in itertools.pairwise(edges)
    ]


def ranges(source: Source, start: int, target_bytes: int) -> list[Slice]:
    """Cut a text file into ranges of equal size, none over `target_bytes`.

    How much a packed file holds is not known before it is unpacked: ranges are cut for a quarter
    more than its beginning promises. Those that turn out to lie behind its end have no rows.
    """
    size = max(0, source.size_bytes - start)
    if source.codec and target_bytes < OPEN_END:
        promised = packed.promised_bytes(source.path, source.codec, source.size_bytes)
        size = int(promised * _SPARE) if promised > target_bytes else promised
    count = max(1, -(-size // target_bytes))
    edges = [start + size * i // count for i in range(count)]
    return [
        Slice(
            path=source.path, format=source.format, codec=source.codec, start=a, stop=b, exact=i == 0,
            origin=start, size_bytes=size // count,
        )
        for i, (a, b) in enumerate(zip(edges, [*edges[1:], OPEN_END], strict=True))
    ]  # fmt: skip


_SPARE = 1.25


def extent(source: Source, dialect: Dialect) -> tuple[int, int]:
    """Return about how many records a file has, and their bytes as partitions count them.

    Of a text the first records are looked at, and taken for all.

    Raises:
        DataError: The file is damaged.
    """
    made = module(source.format)
    if source.format not in TEXT_FORMATS:
        found: tuple[int, int] = made.extent(source, dialect)
        return found
    size = (
        packed.promised_bytes(source.path, source.codec, source.size_bytes)
        if source.codec
        else source.size_bytes
    )
    (part,) = made.split(source, OPEN_END, dialect)
    head = replace(part, stop=part.start + _HEAD_BYTES)
    with scan(head, dialect) as scanned:
        seen = count(scanned, head, dialect)
        return int(size * seen / max(1, scanned.at - head.start)), size


_HEAD_BYTES = 64 << 10


def total_bytes(sources: Sequence[Source], dialect: Dialect) -> int:
    """Return about how many bytes all files have, as partitions count them: by the first one.

    Of texts the stored ones.

    Raises:
        DataError: The first file is damaged.
    """
    stored = sum(source.size_bytes for source in sources)
    if not sources or sources[0].format in TEXT_FORMATS:
        return stored
    _, size = extent(sources[0], dialect)
    return stored * size // max(1, sources[0].size_bytes)


def whole(sources: Sequence[Source], dialect: Dialect = COMMON) -> tuple[Partition, ...]:
    """Return one partition that reads everything in order."""
    slices = [part for source in sources for part in _split(source, OPEN_END, dialect)]
    return (Partition(index=0, slices=tuple(slices)),)


def laid_out(partitions: Sequence[Partition], look: Look, *, add_source: bool) -> tuple[Partition, ...]:
    """Tell every slice what its file's own columns are, and whether rows say where they are from.

    With `add_source` files of several slices are read once to count their records.
    """
    if not (add_source or look.layouts):
        return tuple(partitions)
    made = [
        replace(each, slices=tuple(
            replace(part, layout=look.layouts.get(part.path), add_source=add_source) for part in each.slices
        ))
        for each in partitions
    ]  # fmt: skip
    return tuple(settled(made, look.found.dialect) if add_source else made)


def counted(partitions: Sequence[Partition]) -> set[str]:
    """Return the text files of several slices: those whose records are only known when counted."""
    slices = Counter(
        part.path for partition in partitions for part in partition.slices if part.format in TEXT_FORMATS
    )
    return {path for path, count in slices.items() if count > 1}


def settled(partitions: Sequence[Partition], dialect: Dialect = COMMON) -> list[Partition]:
    """Replace guessed starts by exact ones and number records, by reading texts once for record ends.

    For rows that say which record they are, and for a lazy frame, whose partitions nobody
    compares afterwards. A file of one slice is not read.
    """
    return patiently(lambda _: _settled(partitions, dialect))


def _settled(partitions: Sequence[Partition], dialect: Dialect) -> list[Partition]:
    guessed = {part.path for each in partitions for part in each.slices if not part.exact}
    several = counted(partitions) & guessed
    scans: dict[str, records.Scan] = {}
    totals: Counter[str] = Counter()

    def found(part: Slice) -> Slice:
        if part.path not in several:
            return part
        if part.path not in scans:
            scans[part.path] = stack.enter_context(scan(part, dialect))
        start, before = scans[part.path].at, totals[part.path]
        with transient_reading(part.path):
            totals[part.path] += count(scans[part.path], part, dialect)
        return replace(part, start=start, exact=True, first_record=before)

    with ExitStack() as stack:
        return [replace(each, slices=tuple(found(part) for part in each.slices)) for each in partitions]


def count(scanned: records.Scan, part: Slice, dialect: Dialect) -> int:
    """Count the records that start before the stop of a slice, as the reader does, and read past them."""
    counter = module(part.format).counter(dialect)
    pieces = scanned.until(part.stop)
    return sum(counter(each.raw) if isinstance(each, records.Chunk) else 1 for each in pieces)


def scan(part: Slice, dialect: Dialect) -> AbstractContextManager[records.Scan]:
    """Open a text file to read its records from the first one of a slice on."""
    return records.scanned(part, module(part.format).boundaries(dialect), dialect.encoding)
