"""How much memory a job will take at its peak, by its plan and before it starts.

A worker holds what its reader holds, a row group that is collected, and the same row group encoded;
its process also what it has taken when the model was tried on the first rows. The shares were fitted
to what jobs of every format took (benchmarks/memory.py, which compares).
"""

from collections import Counter

from batchserve import memory
from batchserve.inputs import TEXT_FORMATS, records
from batchserve.outputs import ROW_GROUP_BYTES, ROW_GROUP_ROWS
from batchserve.planning import Plan

_WORKER_BYTES = 16 << 20
"""Tensors of some thousand rows, runs of the model, buffers of the writer."""
_BLOCKS_OF_TEXT = 7
"""A block as it is read, cut, and parsed, and what it is parsed from."""
_GROUPS_HELD = 1.5
"""A row group as it is collected, and what is encoded of it."""
_UNPACKING_BYTES = 32 << 20
_PAGE_BYTES = 1 << 20
"""What a column takes that is streamed: a page and a dictionary, packed and unpacked."""


def peak_bytes(made: Plan, workers: int) -> int:
    """Return about how many bytes are resident in the process that scores, when it takes most.

    Args:
        made: The plan, just made in this process.
        workers: Partitions scored at once.
    """
    resident, _ = memory.used_bytes()
    packed = any(source.codec for source in made.sources)
    each = _WORKER_BYTES + _read_bytes(made) + int(_GROUPS_HELD * _group_bytes(made))
    return resident + workers * each + packed * _UNPACKING_BYTES


def _group_bytes(made: Plan) -> int:
    largest = max((partition.size_bytes for partition in made.partitions), default=0)
    return min(ROW_GROUP_BYTES, ROW_GROUP_ROWS * made.recipe.row_bytes, max(largest, _PAGE_BYTES))


def _read_bytes(made: Plan) -> int:
    """Return what a reader holds: blocks of text, what is cut of a wide row group, or pages of columns."""
    form = made.sources[0].format if made.sources else "csv"
    if form in TEXT_FORMATS:
        return _BLOCKS_OF_TEXT * records.BLOCK_BYTES
    slices = [part for partition in made.partitions for part in partition.slices]
    if form == "parquet":
        largest = max((part.size_bytes // max(1, part.stop - part.start) for part in slices), default=0)
        return min(largest, len(made.recipe.reading.columns) * _PAGE_BYTES)
    sizes: Counter[tuple[str, int]] = Counter()
    for part in slices:
        sizes[part.path, part.start] += part.size_bytes // max(1, part.stop - part.start)
    return max(sizes.values(), default=0)
