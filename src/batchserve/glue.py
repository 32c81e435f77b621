"""Parts -> one Parquet file: row groups copied byte for byte, and every byte checked after."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pq_glue
import pyarrow as pa
import pyarrow.parquet as pq

from batchserve import storage
from batchserve.errors import StorageError
from batchserve.outputs import COMPRESSION, RowGroup

_MAGIC_BYTES = 4


def join(
    parts: Sequence[Path], expected: Sequence[RowGroup], output: Path, coded: Sequence[str] = ()
) -> tuple[list[RowGroup], str]:
    """Put parts together into `output` and check it; the caller makes it durable.

    pq-glue copies row groups as they are. Where it refuses, the rows are encoded again; whether
    it does depends on the parts alone, so a resumed run decides the same.

    Args:
        parts: The parts in input order, at least one, all of one schema.
        expected: Their row groups, in order, as their receipts state them.
        output: The new file.
        coded: Columns that are written with a dictionary, should they be encoded again.

    Returns:
        The row groups of `output`, and the sha256 of what follows the last one.

    Raises:
        StorageError: The file differs from what was scored.
    """
    try:
        pq_glue.concat([str(part) for part in parts], str(output))
        copied = True
    except ValueError:
        _encode_again(parts, output, coded)
        copied = False
    found, footer_sha256 = _inspected(output)
    same = found == list(expected) if copied else _rows(found) == _rows(expected)
    if not (same and pq.read_schema(output).equals(pq.read_schema(parts[0]))):
        message = f"{output}: differs from what was scored"
        raise StorageError(message, "run the same command again; if it happens again, check the disk")
    return found, footer_sha256


def _rows(groups: Sequence[RowGroup]) -> list[int]:
    return [group.rows for group in groups]


def _encode_again(parts: Sequence[Path], output: Path, coded: Sequence[str]) -> None:
    schema = pq.read_schema(parts[0])
    options = {"compression": COMPRESSION, "use_dictionary": list(coded)}
    with pq.ParquetWriter(output, schema, write_page_checksum=True, **options) as writer:
        for part in parts:
            with pq.ParquetFile(part, page_checksum_verification=True) as file:
                for i in range(file.num_row_groups):
                    writer.write_table(file.read_row_group(i, use_threads=False))


def _inspected(path: Path) -> tuple[list[RowGroup], str]:
    """Digest every row group and the footer; decode the first and the last row group.

    Raises:
        StorageError: The file cannot be read back.
    """
    try:
        return _read_back(path)
    except MemoryError:  # Arrow's own is one of its exceptions too
        raise
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{path}: cannot be read back ({error})", "run the same command again") from error


def _read_back(path: Path) -> tuple[list[RowGroup], str]:
    with (
        pq.ParquetFile(path, page_checksum_verification=True) as file,
        path.open("rb") as raw,
        ThreadPoolExecutor(1) as pool,  # decodes while the digests are taken
    ):
        count = file.metadata.num_row_groups
        decoded = [pool.submit(file.read_row_group, i, use_threads=False) for i in {0, count - 1} if count]
        groups = [_row_group(file.metadata.row_group(i), raw) for i in range(count)]
        for each in decoded:
            each.result()
        end = _MAGIC_BYTES + sum(group.size_bytes for group in groups)
        return groups, storage.range_sha256(raw, end, path.stat().st_size)


def _row_group(group: Any, raw: BinaryIO) -> RowGroup:
    chunks = [group.column(i) for i in range(group.num_columns)]
    starts = [c.dictionary_page_offset or c.data_page_offset for c in chunks]
    start = min(starts)
    stop = max(s + c.total_compressed_size for s, c in zip(starts, chunks, strict=True))
    digest = storage.range_sha256(raw, start, stop)
    return RowGroup(rows=group.num_rows, size_bytes=stop - start, sha256=digest)
