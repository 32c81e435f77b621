"""Inputs of a model that no column fills: one value, said once, the same in every run."""

import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel

from batchserve.errors import ModelError
from batchserve.model import Port, Tensor, element, tensor_dtype


class Constant(BaseModel, frozen=True):
    """One input of the model and the value it always gets."""

    input: str
    dtype: str
    """numpy name of the tensor's dtype; `object` for strings."""
    text: str
    """The value as it was said."""
    shape: tuple[int, ...]
    """Of the tensor; of one row of it, where every row gets the value."""
    every_row: bool
    """Whether the input has the batch as first dimension: then each row gets the value."""

    def tensor(self, rows: int) -> Tensor:
        """Return the tensor for a run of `rows` rows: [rows, *shape] or [*shape]."""
        shape = (rows, *self.shape) if self.every_row else self.shape
        value = _typed(_read(self.text, np.dtype(self.dtype)), np.dtype(self.dtype))
        return np.broadcast_to(value, shape).copy()  # ascontiguousarray would give () one dimension

    def __str__(self) -> str:
        where = "in every row" if self.every_row else f"of shape {list(self.shape)}"
        return f"{self.text} ({'text' if self.dtype == 'object' else self.dtype}) {where}"


def constant(port: Port, text: str, leads: Collection[int | str | None]) -> Constant:
    """Read the value that was said for an input.

    A single value fills the whole input, a JSON list has its shape. Where the input has the batch as
    first dimension, every row gets a single value, or a list of the shape of one row.

    Args:
        port: The input.
        text: JSON, or a text as it is for a string input.
        leads: The first dimensions of the inputs that columns fill: the batch.

    Raises:
        ModelError: The value is of another type or shape.
    """
    dtype = tensor_dtype(port)
    said = f"--set {port.name}={text}"
    if dtype is None:
        raise ModelError(f"{said}: input {port} cannot be given", "numbers and texts can")
    try:
        value = _typed(_read(text, dtype), dtype)
    except (ValueError, TypeError, OverflowError) as error:
        kind = "text" if dtype.kind == "O" else element(port)
        raise ModelError(f"{said}: is no {kind}", "give a value, or a JSON list of values") from error
    batched = bool(port.shape) and port.shape[0] in leads
    wanted = port.shape[1:] if batched and value.ndim < len(port.shape) else port.shape
    if value.ndim not in {0, len(wanted)} or not all(map(_fits, value.shape, wanted)):
        raise ModelError(f"{said}: has shape {list(value.shape)}, the input is {port}")
    shape = value.shape or tuple(dim if isinstance(dim, int) else 1 for dim in wanted)
    every_row = batched and len(wanted) < len(port.shape)
    return Constant(input=port.name, dtype=dtype.name, text=text, shape=shape, every_row=every_row)


def _fits(size: int, dim: int | str | None) -> bool:
    return not isinstance(dim, int) or size == dim


def _read(text: str, dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "O":
        return json.loads(text) if text.startswith(("[", '"')) else text
    try:
        return json.loads(text)
    except ValueError:
        return float(text)  # nan and inf, in any spelling


def _typed(value: Any, dtype: np.dtype[Any]) -> Tensor:
    """Return a value as a tensor; what another type would change is an error, rounding is not.

    Raises:
        ValueError: It does not fit, or is ragged.
    """
    if dtype.kind == "O":
        texts = np.array(value, dtype=object)
        if not all(isinstance(text, str) for text in texts.flat):
            raise ValueError("not texts")
        return texts
    plain = np.array(value)
    if plain.dtype.kind not in "biuf":
        raise ValueError("not numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        typed = plain.astype(dtype)
    changed = np.isinf(typed) & ~np.isinf(plain) if dtype.kind == "f" else typed.astype(object) != plain
    if np.any(changed):
        raise ValueError("does not fit")
    return typed


def tensors(constants: Collection[Constant], rows: int) -> Mapping[str, Tensor]:
    """Return the tensor of every constant for a run of `rows` rows."""
    return {each.input: each.tensor(rows) for each in constants}
