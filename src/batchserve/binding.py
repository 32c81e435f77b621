"""Which columns fill which model input: decided once, before any work, all problems at once."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from batchserve import constants, lists, nulls
from batchserve.constants import Constant
from batchserve.errors import BatchserveError, ModelError, did_you_mean, raise_all
from batchserve.model import FEATURES_KEY, NULLS_KEY, Port, Signature, Tensor, element, tensor_dtype
from batchserve.nulls import NullPolicy


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
    packed: bool = False
    """Whether the one column holds lists: all values of a row."""
    shape: lists.Dims = ()
    """Dimensions of one row where `packed`; None only until the first rows are seen."""


class Binding(BaseModel, frozen=True):
    """How columns become tensors: proven to fit before any work starts."""

    feeds: tuple[Feed, ...]
    constants: tuple[Constant, ...] = ()
    fixed_batch: int | None = None
    """The batch size fixed in the model, or None when any size will do."""

    def constant_tensors(self, rows: int) -> Mapping[str, Tensor]:
        """Return what the inputs get that no column fills, for a run of `rows` rows."""
        return constants.tensors(self.constants, rows)

    @property
    def row_bytes(self) -> int:
        """Bytes that one row has in all tensors; a text counts as its reference."""
        sizes = [math.prod(dim or 1 for dim in feed.shape) * len(feed.columns) for feed in self.feeds]
        return sum(n * np.dtype(f.dtype).itemsize for n, f in zip(sizes, self.feeds, strict=True))

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
    set: dict[str, str] = {}
    on_null: tuple[str, ...] = ()
    other_inputs: frozenset[str] = frozenset()
    """Inputs of other models of the job: what is said of them may not be about this one."""
    other_columns: frozenset[str] = frozenset()
    """Columns that other models of the job read."""


def bind(signature: Signature, schema: pa.Schema, wish: Wish) -> Binding:
    """Decide which columns fill which model input.

    An input [batch] or [batch, 1] takes the column of its own name (or of `wish.map`). A wider one
    takes a list column of its name, or scalar columns: `wish.features`, or the list in the model's
    metadata. An input of `wish.set` takes no column.

    Args:
        signature: What the model takes.
        schema: The columns of the input files.
        wish: The user's `--features`, `--map`, `--set` and `--on-null`; the metadata's rule for nulls
            holds where the last says nothing.

    Raises:
        ModelError: Something does not fit; every problem is in the message.
    """
    problems: list[BatchserveError] = []
    asked = signature.naming({*wish.map, *wish.set})
    fed = asked.without(wish.set)
    policies = nulls.policies((*_stored_rule(signature), *wish.on_null), problems)
    feeds = [_feed(port, fed, wish, schema, problems) for port in fed.inputs]
    fixed = _constants(asked, fed, wish, problems)
    problems += _batch_problems(fed)
    for flag, named in (("map", wish.map), ("set", wish.set)):
        unknown = set(named) - {port.name for port in asked.inputs} - wish.other_inputs
        problems += [_no_input(flag, name, asked) for name in sorted(unknown)]
    bound = [feed for feed in feeds if feed]
    problems += _null_problems(bound, policies, schema, wish.other_columns)
    raise_all(problems)
    with_nulls = tuple(_with_nulls(feed, policies) for feed in bound)
    return Binding(feeds=with_nulls, constants=fixed, fixed_batch=fed.fixed_batch)


def _stored_rule(signature: Signature) -> tuple[str, ...]:
    """Return what the model's metadata says of nulls: `nan`, if its export proved that."""
    return ("nan",) if signature.metadata.get(NULLS_KEY) == "nan" else ()


def _no_input(flag: str, name: str, signature: Signature) -> ModelError:
    names = [port.name for port in signature.inputs]
    return ModelError(
        f"--{flag} {name}=...: the model has no input {name}",
        did_you_mean(name, names) or f"its inputs are: {', '.join(names)}",
    )


def _constants(
    asked: Signature, fed: Signature, wish: Wish, problems: list[BatchserveError]
) -> tuple[Constant, ...]:
    leads = [port.shape[0] for port in fed.inputs if port.shape]
    found = []
    for port in asked.inputs:
        if port.name in wish.set:
            try:
                found.append(constants.constant(port, wish.set[port.name], leads))
            except ModelError as problem:
                problems.append(problem)
    return tuple(found)


def _batch_problems(fed: Signature) -> Iterator[ModelError]:
    if not fed.inputs:
        yield ModelError("no input of the model is filled from a column", "a score must depend on its row")
    sizes = {port.name: port.shape[0] for port in fed.inputs if port.shape}
    whole = {size for size in sizes.values() if isinstance(size, int)}
    if 0 in whole:
        yield ModelError("the model takes batches of no rows", "export it with an open batch dimension")
    if len(whole) > 1:
        shown = ", ".join(str(port) for port in fed.inputs if port.shape)
        yield ModelError(f"inputs differ in their first dimension, the batch: {shown}", _NOT_PER_ROW)


_NOT_PER_ROW = "one that is not per row takes one value for all rows: --set INPUT=JSON"


def _feed(
    port: Port, signature: Signature, wish: Wish, schema: pa.Schema, problems: list[BatchserveError]
) -> Feed | None:
    dtype = tensor_dtype(port)
    if dtype is None:
        problems.append(ModelError(f"input {port}: cannot be filled from columns", _unfit(port)))
    elif not port.shape:
        hint = f"it takes one value for all rows: --set {port.name}=VALUE"
        problems.append(ModelError(f"input {port}: is a single value, no column can fill it", hint))
    elif _is_wide(port) and (column := _list_column(port, signature, wish, schema)):
        return _packed(port, dtype, schema.field(column), problems)
    else:
        return _scalars(port, dtype, signature, wish, schema, problems)
    return None


def _unfit(port: Port) -> str:
    kind = element(port)
    if "(" in port.type.removeprefix("tensor("):
        return "an input must be a tensor of numbers or texts, one row per record"
    return f"no column type is {kind}: export the model with float32 or another type that columns have"


def _is_wide(port: Port) -> bool:
    return len(port.shape) > 1 and tuple(port.shape[1:]) != (1,)


def _list_column(port: Port, signature: Signature, wish: Wish, schema: pa.Schema) -> str | None:
    """Return the column of lists that a wide input takes, or None where it takes scalar columns."""
    if port.name in wish.map:
        return wish.map[port.name] if wish.map[port.name] in schema.names else None
    here = [p.name for p in signature.inputs if _is_wide(p) and _holds_lists(p.name, schema)]
    wide = [p for p in signature.inputs if _is_wide(p)]
    alone = bool(wish.features) and len(wide) == 1
    return port.name if port.name in here and not alone else None


def _holds_lists(name: str, schema: pa.Schema) -> bool:
    kind = schema.field(name).type if name in schema.names else None
    return kind is not None and (lists.is_list(kind) or pa.types.is_null(kind))


def _packed(
    port: Port, dtype: np.dtype[Any], field: pa.Field, problems: list[BatchserveError]
) -> Feed | None:
    wanted: lists.Dims = tuple(_dim(dim) for dim in port.shape[1:])
    has = lists.dims_of(field.type)
    shape = lists.fitted(wanted, has) if has else None
    if pa.types.is_null(field.type):
        shape = wanted
    inner = pa.field(field.name, lists.element_of(field.type))
    if shape is None or _is_turned(field.type):
        row = ", ".join("any number" if dim is None else str(dim) for dim in wanted)
        message = f"input {port}: column {field.name} is {field.type}, a row must hold [{row}] values"
        hint = "give it nested lists as deep as the input, or a flat list of all values of a row"
        problems.append(ModelError(message, hint))
        return None
    if problem := _type_problem(inner, port, dtype):
        problems.append(problem)
    return Feed(
        input=port.name, dtype=dtype.name, columns=(field.name,), nulls=(NullPolicy(),),
        rank=len(port.shape), packed=True, shape=shape,
    )  # fmt: skip


def _is_turned(kind: pa.DataType) -> bool:
    """Whether a tensor column stores its values in another order than its shape says."""
    order = kind.permutation if isinstance(kind, pa.FixedShapeTensorType) else None
    return order is not None and list(order) != sorted(order)


def _scalars(
    port: Port, dtype: np.dtype[Any], signature: Signature, wish: Wish, schema: pa.Schema,
    problems: list[BatchserveError],
) -> Feed | None:  # fmt: skip
    names = _names_for(port, signature, wish, schema, problems)
    if names is None:
        return None
    missing = [name for name in names if name not in schema.names]
    problems += [_no_column(name, port, schema) for name in missing]
    present = [name for name in names if name in schema.names]
    problems += [p for name in present if (p := _type_problem(schema.field(name), port, dtype))]
    nulls = tuple(NullPolicy() for _ in names)
    return Feed(input=port.name, dtype=dtype.name, columns=names, nulls=nulls, rank=len(port.shape))


def _names_for(
    port: Port, signature: Signature, wish: Wish, schema: pa.Schema, problems: list[BatchserveError]
) -> tuple[str, ...] | None:
    if not _is_wide(port) or port.name in wish.map:
        return (wish.map.get(port.name, port.name),)
    width = port.shape[1]
    names = stored_features(signature, port.name)
    wide = [
        p.name
        for p in signature.inputs
        if _is_wide(p) and not _list_column(p, signature, wish, schema) and not _own_features(signature, p)
    ]
    if wide == [port.name]:
        names = wish.features or names
    if len(port.shape) > 2:  # noqa: PLR2004  [batch, columns]
        hint = f"name one: --map {port.name}=COLUMN, or give all rows one value: --set {port.name}=JSON"
        problems.append(ModelError(f"input {port}: no column {port.name} holds the values of a row", hint))
    elif len(wide) > 1 and port.name in wide:
        problems.append(ModelError(f"inputs {', '.join(wide)}: which columns fill them?", _SEVERAL_WIDE))
    elif not names:
        numeric = [f.name for f in schema if _is_number(f.type)]
        hint = (
            f"name them in order: --features {','.join(numeric[: _dim(width)]) or 'A,B'}; "
            f"or one column of lists: --map {port.name}=COLUMN"
        )
        problems.append(ModelError(f"input {port}: which columns fill it?", hint))
    elif isinstance(width, int) and len(names) != width:
        message = f"input {port}: takes {width} columns, {len(names)} are named"
        problems.append(ModelError(message, f"named are: {', '.join(names)}"))
    else:
        return names
    return None


_SEVERAL_WIDE = (
    "--features names the columns of one wide input; give the others a column of lists each "
    "(--map INPUT=COLUMN), or list their columns in the model's metadata: batchserve.features.INPUT"
)


def wanted_columns(signature: Signature, wish: Wish, present: Sequence[str] = ()) -> list[str]:
    """Return the names of the columns that the inputs would take, whether they exist or not.

    Args:
        signature: What the model takes.
        wish: What the user said.
        present: Columns that are there: one of a wide input's own name is taken for its lists.
    """
    names: list[str] = []
    for port in signature.naming(wish.map).without(wish.set).inputs:
        features = wish.features or stored_features(signature, port.name)
        own = port.name in wish.map or (port.name in present and not wish.features)
        wide = _is_wide(port) and features and not own
        names += features if wide else (wish.map.get(port.name, port.name),)
    return list(dict.fromkeys(names))


def _dim(width: int | str | None) -> int | None:
    return width if isinstance(width, int) else None


def _own_features(signature: Signature, port: Port) -> bool:
    return f"{FEATURES_KEY}.{port.name}" in signature.metadata


def stored_features(signature: Signature, name: str = "") -> tuple[str, ...]:
    """Return the column list stored in the model's metadata for input `name`, or for the wide one.

    Example:
        >>> stored_features(Signature(inputs=(), outputs=(), metadata={"batchserve.features": '["a", "b"]'}))
        ('a', 'b')
    """
    shared = signature.metadata.get(FEATURES_KEY, "")
    text = signature.metadata.get(f"{FEATURES_KEY}.{name}", shared).strip()
    if text.startswith("["):
        try:
            return tuple(str(name) for name in json.loads(text))
        except ValueError:
            return ()
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _no_column(name: str, port: Port, schema: pa.Schema) -> ModelError:
    near = did_you_mean(name, schema.names)
    own = f"map one: --map {port.name}=COLUMN, or give all rows one value: --set {port.name}=VALUE"
    rename = own if name == port.name else ""
    hint = " Or ".join(part for part in (near, rename) if part)
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


def _with_nulls(feed: Feed, policies: Mapping[str, NullPolicy]) -> Feed:
    default = policies[""]
    if feed.dtype == "object" and default.rule == "nan":
        default = NullPolicy()  # strings have no NaN: a null string stays a reject
    nulls = tuple(policies.get(name, default) for name in feed.columns)
    return feed.model_copy(update={"nulls": nulls})


def _null_problems(
    feeds: Sequence[Feed],
    policies: Mapping[str, NullPolicy],
    schema: pa.Schema,
    other_columns: frozenset[str],
) -> Iterator[ModelError]:
    used = {name for feed in feeds for name in feed.columns}
    for column in policies.keys() - used - other_columns - {""}:
        near = did_you_mean(column, used)
        yield ModelError(f"--on-null {column}:...: the model reads no column {column}", near)
    for feed in (_with_nulls(feed, policies) for feed in feeds):
        for name, policy in zip(feed.columns, feed.nulls, strict=True):
            problem = nulls.problem(np.dtype(feed.dtype), policy)
            if problem and name in schema.names:
                yield ModelError(f"column {name}: {problem}", nulls.CHOICES)
