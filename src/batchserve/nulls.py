"""What a null in a column of the model becomes: nothing is assumed, so it is said."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from batchserve.errors import BatchserveError, ModelError

NullRule = Literal["reject", "nan", "fill"]


class NullPolicy(BaseModel, frozen=True):
    """What a null in one model column becomes."""

    rule: NullRule = "reject"
    fill: str = ""

    def __str__(self) -> str:
        return f"fill={self.fill}" if self.rule == "fill" else self.rule


def policies(wishes: Sequence[str], problems: list[BatchserveError]) -> dict[str, NullPolicy]:
    """Read what was said: the rule per column, and under an empty name that of all others.

    Args:
        wishes: As on the command line, `[COLUMN:]reject|nan|fill=VALUE`.
        problems: Gets those that are not understood.
    """
    found = {"": NullPolicy()}
    for wish in wishes:
        column, colon, rule = wish.rpartition(":") if "=" not in wish else _split_fill(wish)
        name, _, fill = rule.partition("=")
        if name not in {"reject", "nan", "fill"} or (name == "fill") != ("=" in rule):
            hint = "say reject, nan or fill=VALUE, with COLUMN: before it for one column"
            problems.append(ModelError(f"--on-null {wish}: not understood", hint))
            continue
        found[column if colon else ""] = NullPolicy(rule=name, fill=fill)
    return found


def _split_fill(wish: str) -> tuple[str, str, str]:
    column, mark, value = wish.partition(":fill=")
    return (column, ":", f"fill={value}") if mark else ("", "", wish)


CHOICES = "choose --on-null COLUMN:reject or COLUMN:fill=VALUE"


def problem(dtype: np.dtype[Any], policy: NullPolicy) -> str:
    """Return why a tensor of this dtype cannot hold what a null would become, or nothing."""
    if policy.rule == "nan" and dtype.kind != "f":
        return f"{'text' if dtype.kind == 'O' else dtype.name} has no NaN for a null"
    if policy.rule == "fill" and dtype.kind != "O":
        try:
            dtype.type(policy.fill)
        except (ValueError, OverflowError):
            return f"{policy.fill!r} is no {dtype.name} to fill nulls with"
    return ""
