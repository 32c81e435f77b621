"""Which columns fill which model input: decided once, before any work, all problems at once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from batchserve.errors import BatchserveError, ModelError, did_you_mean, raise_all
from batchserve.model import FEATURES_KEY, Port, Signature, tensor_dtype

NullRule = Literal["reject", "nan", "fill"]


class NullPolicy(BaseModel, frozen=True):
    """What a null in one model column becomes."""

    rule: NullRule = "reject"
    fill: str = ""

    def __str__(self) -> str:
        return f"fill={self.fill}" if self.rule == "fill" else self.rule


class Feed(BaseModel, frozen=True):
    """One model input and the columns that fill it, left to right."""

    input: str
    dtype: str
    """numpy name of the tensor's dtype; `object` for strings."""
    columns: tuple[str, ...]
    nulls: tuple[NullPolicy, ...]
    """What a null becomes, one per column."""
    rank: int
    """1 for a tensor [batch], 2 for [batch, columns]."""


class Binding(BaseModel, frozen=True):
    """How columns become tensors: proven to fit before any work starts."""

    feeds: tuple[Feed, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column the model reads, once, in order of first use."""
        return tuple(dict.fromkeys(name for feed in self.feeds for name in feed.columns))

    @property
    def null_rules(self) -> dict[str, NullPolicy]:
        """What a null becomes, per column."""
        return {n: rule for feed in self.feeds for n, rule in zip(feed.columns, feed.nulls, strict=True)}

    @property
    def numeric(self) -> tuple[str, ...]:
        """The columns that some input reads as numbers, once, in order of first use."""
        return tuple(dict.fromkeys(n for f in self.feeds if f.dtype != "object" for n in f.columns))


class Wish(BaseModel, frozen=True):
    """What the user said about the binding."""

    features: tuple[str, ...] = ()
    map: dict[str, str] = {}
    on_null: tuple[str, ...] = ()


def bind(signature: Signature, schema: pa.Schema, wish: Wish) -> Binding:
    """Decide which columns fill which model input.

    An input [batch] or [batch, 1] takes the column of its own name (or of `wish.map`); one
    wider input takes `wish.features`, or the list in the model's metadata.

    Args:
        signature: What the model takes.
        schema: The columns of the input files.
        wish: The user's `--features`, `--map` and `--on-null`.

    Raises:
        ModelError: Something does not fit; every problem is in the message.
    """
    problems: list[BatchserveError] = []
    policies = _policies(wish.on_null, problems)
    feeds = [_feed(port, signature, wish, schema, problems) for port in signature.inputs]
    unknown = set(wish.map) - {port.name for port in signature.inputs}
    problems += [_no_input(name, signature) for name in sorted(unknown)]
    bound = [feed for feed in feeds if feed]
    problems += _null_problems(bound, policies, schema)
    raise_all(problems)
    return Binding(feeds=tuple(_with_nulls(feed, policies) for feed in bound))


def _no_input(name: str, signature: Signature) -> ModelError:
    names = [port.name for port in signature.inputs]
    return ModelError(
        f"--map {name}=...: the model has no input {name}",
        did_you_mean(name, names) or f"its inputs are: {', '.join(names)}",
    )


def _feed(
    port: Port, signature: Signature, wish: Wish, schema: pa.Schema, problems: list[BatchserveError]
) -> Feed | None:
    dtype = tensor_dtype(port)
    rank = len(port.shape)
    if dtype is None or rank not in {1, 2}:
        problems.append(ModelError(f"input {port}: cannot be filled from columns", _RANKS))
        return None
    names = _names_for(port, signature, wish, schema, problems)
    if names is None:
        return None
    missing = [name for name in names if name not in schema.names]
    problems += [_no_column(name, port, schema) for name in missing]
    present = [name for name in names if name in schema.names]
    problems += [p for name in present if (p := _type_problem(schema.field(name), port, dtype))]
    nulls = tuple(NullPolicy() for _ in names)
    return Feed(input=port.name, dtype=dtype.name, columns=names, nulls=nulls, rank=rank)


_RANKS = "an input must be a tensor [batch], [batch, 1] or [batch, columns] of numbers or strings"


def _names_for(
    port: Port, signature: Signature, wish: Wish, schema: pa.Schema, problems: list[BatchserveError]
) -> tuple[str, ...] | None:
    width = port.shape[1] if len(port.shape) > 1 else 1
    if width == 1:
        return (wish.map.get(port.name, port.name),)
    names = wish.features or stored_features(signature)
    wide = [p.name for p in signature.inputs if len(p.shape) > 1 and p.shape[1] != 1]
    if len(wide) > 1:
        problems.append(ModelError(f"inputs {', '.join(wide)}: only one wide input can be filled"))
    elif not names:
        numeric = [f.name for f in schema if _is_number(f.type)]
        hint = f"name them in order: --features {','.join(numeric[: _dim(width)])}"
        problems.append(ModelError(f"input {port}: which columns fill it?", hint))
    elif isinstance(width, int) and len(names) != width:
        message = f"input {port}: takes {width} columns, {len(names)} are named"
        problems.append(ModelError(message, f"named are: {', '.join(names)}"))
    else:
        return names
    return None


def wanted_columns(signature: Signature, wish: Wish) -> list[str]:
    """Return the names of the columns that the inputs would take, whether they exist or not."""
    names: list[str] = []
    for port in signature.inputs:
        wide = len(port.shape) > 1 and port.shape[1] != 1
        features = wish.features or stored_features(signature)
        names += features if wide else (wish.map.get(port.name, port.name),)
    return list(dict.fromkeys(names))


def _dim(width: int | str | None) -> int | None:
    return width if isinstance(width, int) else None


def stored_features(signature: Signature) -> tuple[str, ...]:
    """Return the column list stored in the model's metadata, or nothing.

    Example:
        >>> stored_features(Signature(inputs=(), outputs=(), metadata={"batchserve.features": '["a", "b"]'}))
        ('a', 'b')
    """
    text = signature.metadata.get(FEATURES_KEY, "").strip()
    if text.startswith("["):
        try:
            return tuple(str(name) for name in json.loads(text))
        except ValueError:
            return ()
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _no_column(name: str, port: Port, schema: pa.Schema) -> ModelError:
    near = did_you_mean(name, schema.names)
    rename = f"or map one: --map {port.name}=COLUMN" if name == port.name else ""
    hint = " ".join(part for part in (near, rename) if part)
    return ModelError(f"input {port.name}: no column {name}", hint or _listed(schema.names))


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"columns are: {', '.join(names[:most])}{more}"


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
        or types.is_decimal(kind)
    )  # fmt: skip


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _type_problem(field: pa.Field, port: Port, dtype: np.dtype[Any]) -> ModelError | None:
    kind = _plain(field.type)
    if is_text(kind) or pa.types.is_null(kind):
        return None  # a text may hold numbers: rows that do not are told apart one by one
    if dtype.kind == "O" and pa.types.is_integer(kind):
        return None
    if dtype.kind != "O" and _is_number(kind):
        return None
    wants = "text" if dtype.kind == "O" else f"numbers ({dtype.name})"
    hint = f"--type {field.name}=text reads it as text" if dtype.kind == "O" else "convert the column"
    return ModelError(f"input {port.name}: wants {wants}, column {field.name} is {kind}", hint)


def _policies(wishes: Sequence[str], problems: list[BatchserveError]) -> dict[str, NullPolicy]:
    policies = {"": NullPolicy()}
    for wish in wishes:
        column, colon, rule = wish.rpartition(":") if "=" not in wish else _split_fill(wish)
        name, _, fill = rule.partition("=")
        if name not in {"reject", "nan", "fill"} or (name == "fill") != ("=" in rule):
            hint = "say reject, nan or fill=VALUE, with COLUMN: before it for one column"
            problems.append(ModelError(f"--on-null {wish}: not understood", hint))
            continue
        policies[column if colon else ""] = NullPolicy(rule=name, fill=fill)
    return policies


def _split_fill(wish: str) -> tuple[str, str, str]:
    column, mark, value = wish.partition(":fill=")
    return (column, ":", f"fill={value}") if mark else ("", "", wish)


def _with_nulls(feed: Feed, policies: Mapping[str, NullPolicy]) -> Feed:
    default = policies[""]
    if feed.dtype == "object" and default.rule == "nan":
        default = NullPolicy()  # strings have no NaN: a null string stays a reject
    nulls = tuple(policies.get(name, default) for name in feed.columns)
    return feed.model_copy(update={"nulls": nulls})


def _null_problems(
    feeds: Sequence[Feed], policies: Mapping[str, NullPolicy], schema: pa.Schema
) -> Iterator[ModelError]:
    used = {name for feed in feeds for name in feed.columns}
    for column in policies.keys() - used - {""}:
        near = did_you_mean(column, used)
        yield ModelError(f"--on-null {column}:...: the model reads no column {column}", near)
    for feed in (_with_nulls(feed, policies) for feed in feeds):
        for name, policy in zip(feed.columns, feed.nulls, strict=True):
            problem = _null_problem(np.dtype(feed.dtype), policy)
            if problem and name in schema.names:
                yield ModelError(f"column {name}: {problem}", _NULL_CHOICES)


_NULL_CHOICES = "choose --on-null COLUMN:reject or COLUMN:fill=VALUE"


def _null_problem(dtype: np.dtype[Any], policy: NullPolicy) -> str:
    if policy.rule == "nan" and dtype.kind != "f":
        return f"{'text' if dtype.kind == 'O' else dtype.name} has no NaN for a null"
    if policy.rule == "fill" and dtype.kind != "O":
        try:
            dtype.type(policy.fill)
        except (ValueError, OverflowError):
            return f"{policy.fill!r} is no {dtype.name} to fill nulls with"
    return ""
