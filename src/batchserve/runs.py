"""Runs of a session with patience: not for ever, and in smaller pieces where memory runs out."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from batchserve.errors import MemoryShortError
from batchserve.lookups import NO_CODES, Codes
from batchserve.model import Session, Tensor
from batchserve.zipmaps import Maps


class Runs:
    """Runs a session with patience: not for ever, and in smaller pieces where memory runs out.

    Args:
        session: The model.
        timeout_s: Seconds that a run may take, or None.
        constants: Given the rows of a run, what the inputs get that no column fills.
        fixed: Whether the model takes batches of one size only.

    Attributes:
        halved: Runs that were split in two because memory ran out.
    """

    def __init__(
        self, session: Session, timeout_s: float | None = None,
        constants: Callable[[int], Mapping[str, Tensor]] = lambda _: {}, *, fixed: bool | None = None,
    ) -> None:  # fmt: skip
        self._session = session
        self._timeout_s = timeout_s
        self._constants = functools.lru_cache(maxsize=8)(constants)
        self._fixed = session.signature().fixed_batch is not None if fixed is None else fixed
        self.halved = 0

    def run(
        self, outputs: Sequence[str], tensors: Mapping[str, Tensor], codes: Mapping[str, Codes] = NO_CODES
    ) -> list[Any]:
        """Run the model over a batch; where memory runs out, over its halves.

        Raises:
            MemoryShortError: There is not even memory for one row.
            StallError: A run took too long.
            ModelError: The runtime refused the tensors or failed.
        """
        rows = len(next(iter(tensors.values())))
        try:
            return self.once(outputs, tensors, codes)
        except MemoryShortError:
            if rows == 1 or self._fixed:
                raise
        self.halved += 1
        half = rows // 2
        first = self.run(outputs, {name: tensor[:half] for name, tensor in tensors.items()})
        second = self.run(outputs, {name: tensor[half:] for name, tensor in tensors.items()})
        return [_both(a, b) for a, b in zip(first, second, strict=True)]

    def once(
        self, outputs: Sequence[str], tensors: Mapping[str, Tensor], codes: Mapping[str, Codes] = NO_CODES
    ) -> list[Any]:
        """Run the model over a batch, whole.

        Raises:
            MemoryShortError: Memory ran out.
            StallError: It took too long.
            ModelError: The runtime refused the tensors or failed.
        """
        rows = len(next(iter(tensors.values())))
        return self._session.run(outputs, {**tensors, **self._constants(rows)}, self._timeout_s, codes)


def _both(first: Any, second: Any) -> Any:
    if isinstance(first, Maps):
        return Maps.joined([first, second])
    if isinstance(first, list) or isinstance(second, list) or first.shape[1:] != second.shape[1:]:
        return [*first, *second]
    return np.concatenate((first, second))
