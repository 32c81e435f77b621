"""What is counted while a partition is read and scored."""

from collections import Counter, defaultdict
from collections.abc import Callable

from batchserve.inputs import Extent, Partition, TypeMisfit
from batchserve.outputs import Amendment, Facts
from batchserve.rejects import Reject
from batchserve.stopwatch import Stopwatch

Rejected = Callable[[int, Reject], None]
"""Told of every reject: the number of its slice in the partition, and the reject."""


class Tally:
    """Counts rows, nulls, rejects and seconds of one partition.

    Args:
        rejected: Told of every reject as it is met.
    """

    def __init__(self, rejected: Rejected = lambda _slice, _reject: None) -> None:
        self._rejected = rejected
        self._records: list[int] = []
        self._refused: list[int] = []
        self._extents: list[tuple[int, int]] = []
        self._by_class: Counter[str] = Counter()
        self._amendments: dict[str, Amendment] = {}
        self.rows_in = 0
        self.nulls: Counter[str] = Counter()
        self.rounded: Counter[str] = Counter()
        self.nonfinite: Counter[str] = Counter()
        self._watches: dict[str, Stopwatch] = defaultdict(Stopwatch)
        self._whole = Stopwatch()
        self._whole.start()
        self.halved = self.retries = 0

    @property
    def slice(self) -> int:
        """The number of the slice that is being read."""
        return len(self._records) - 1

    @property
    def record(self) -> int:
        """Records of that slice so far."""
        return self._records[-1]

    @property
    def rows_rejected(self) -> int:
        """Rejects so far."""
        return self._by_class.total()

    def begin_slice(self) -> None:
        """Begin to count the records of the next slice."""
        self._records.append(0)

    def end_slice(self, extent: Extent) -> None:
        """Note the exact range that the slice turned out to have."""
        self._extents.append((extent.start, extent.stop))

    def read(self, rows: int) -> None:
        """Count records that were read."""
        self.rows_in += rows
        self._records[-1] += rows

    def reject(self, slice_: int, reject: Reject) -> None:
        """Count a record that cannot be scored."""
        self._by_class[f"{reject.kind} {reject.column}".rstrip()] += 1
        self._rejected(slice_, reject)

    def refuse(self, position: int, slice_: int, reject: Reject) -> None:
        """Count a row that the model refused: the one `position` rows after the first it was given."""
        self._refused.append(position)
        self.reject(slice_, reject)

    def amend(self, misfit: TypeMisfit) -> None:
        """Note that a column needs another type; the first text that says so is kept."""
        amendment = Amendment(
            column=misfit.column, becomes=misfit.becomes, place=misfit.place, value=misfit.value
        )
        self._amendments.setdefault(misfit.column, amendment)

    def timed(self, stage: str) -> Stopwatch:
        """Return what adds the seconds of its block to `stage`."""
        return self._watches[stage]

    def hand_over(self, stage: str, inner: str, watch: Stopwatch) -> None:
        """Count what `watch` measured inside `stage` as `inner`."""
        self._watches[stage].hand_over(watch)
        self._watches[inner] = watch

    def _times(self) -> dict[str, Stopwatch]:
        """Return the time of every stage, and what lies between them as `other`."""
        self._whole.stop()
        stages = dict(self._watches)
        for watch in stages.values():
            self._whole.hand_over(watch)
        return stages | {"other": self._whole}

    def facts(self, partition: Partition) -> Facts:
        """Return what was counted, when all is done."""
        times = self._times()
        return Facts(
            rows_in=self.rows_in, rows_rejected=self.rows_rejected, bytes_in=partition.size_bytes,
            extents=tuple(self._extents), records=tuple(self._records), refused=tuple(sorted(self._refused)),
            nulls=dict(self.nulls), rounded=dict(self.rounded), nonfinite=dict(self.nonfinite),
            rejected_by=dict(self._by_class),
            amendments=tuple(self._amendments.values()),
            seconds={stage: watch.seconds for stage, watch in times.items()},
            waited_s={stage: watch.waited_s for stage, watch in times.items()},
            halved_batches=self.halved, read_retries=self.retries,
        )  # fmt: skip
