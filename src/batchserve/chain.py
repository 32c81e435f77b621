"""Do the parts make a whole? The receipts' exact extents say so.

The planned start of a slice inside a text file is a guess; every record is read once only if
each slice of a file starts exactly where the slice before it stopped.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

from batchserve.inputs import OPEN_END, TEXT_FORMATS, Partition
from batchserve.outputs import Amendment, Receipt


def misguessed(partitions: Sequence[Partition], receipts: dict[int, Receipt]) -> Partition | None:
    """Return the first partition that does not start where the one before it ended, corrected.

    The planned start of a slice inside a text file is a guess; every record is read once only
    if each slice of a file starts exactly where the slice before it stopped.
    """
    ends: dict[str, int] = {}
    for partition in partitions:
        extents = receipts[partition.index].facts.extents
        for i, (part, (start, stop)) in enumerate(zip(partition.slices, extents, strict=False)):
            expected = ends.get(part.path, start)
            if part.format in TEXT_FORMATS and start != expected:
                return _restarted(partition, i, expected)
            ends[part.path] = stop
    return None


def amendments(partitions: Sequence[Partition], receipts: dict[int, Receipt]) -> dict[str, Amendment]:
    """Return the column types that must be amended, as far as receipts can be trusted yet.

    A partition that began at a wrong guess may have met nonsense: only those count that follow
    on from the first without a gap.
    """
    found: dict[str, Amendment] = {}
    for partition in _trusted(partitions, receipts):
        for amendment in receipts[partition.index].facts.amendments:
            found.setdefault(amendment.column, amendment)
    return found


def rejected(partitions: Sequence[Partition], receipts: dict[int, Receipt]) -> int:
    """Return the rejects so far, as far as receipts can be trusted yet."""
    return sum(receipts[p.index].facts.rows_rejected for p in _trusted(partitions, receipts))


def is_cut_short(partitions: Sequence[Partition], receipts: Iterable[Receipt]) -> bool:
    """Whether some text was not read to its end, as a record in it does not end."""
    return any(
        part.format in TEXT_FORMATS and stop >= OPEN_END
        for receipt in receipts
        for part, (_, stop) in zip(partitions[receipt.partition].slices, receipt.facts.extents, strict=False)
    )


def _trusted(partitions: Sequence[Partition], receipts: dict[int, Receipt]) -> list[Partition]:
    here = list(itertools.takewhile(lambda p: p.index in receipts, partitions))
    wrong = misguessed(here, receipts)
    return here[: wrong.index if wrong else None]


def _restarted(partition: Partition, at: int, start: int) -> Partition:
    """Return the partition with the true start of one of its slices: what stands before it was right."""
    slices = list(partition.slices)
    slices[at] = replace(slices[at], start=start, exact=True)
    return replace(partition, slices=tuple(slices), redone=True)
