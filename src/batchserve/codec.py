"""Columns <-> tensors. Pure: the binding is made once, before any work; then it is applied.

Everything that can be known from the model's signature and the files' schema is decided in
`bind`, with all problems at once; `encode` and `decode` cannot fail for a reason `bind` saw.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel

from batchserve.errors import BatchserveError, ModelError, did_you_mean, raise_all
from batchserve.model import FEATURES_KEY, Port, Signature, Tensor, tensor_dtype
from batchserve.rejects import RejectClass

NULL_TEXTS = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
"""Texts that mean null where a number is wanted: the ones pandas knows."""

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
    def numeric(self) -> frozenset[str]:
        """The columns that some input reads as numbers."""
        return frozenset(n for feed in self.feeds if feed.dtype != "object" for n in feed.columns)


class Wish(BaseModel, frozen=True):
    """What the user said about the binding."""

    features: tuple[str, ...] = ()
    map: dict[str, str] = {}
    on_null: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Misfit:
    """A cell that cannot become a number of the model: row within its batch, and why."""

    row: int
    column: str
    kind: RejectClass
    value: str
    reason: str


# -- binding ----------------------------------------------------------------------------------


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


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _type_problem(field: pa.Field, port: Port, dtype: np.dtype[Any]) -> ModelError | None:
    kind = _plain(field.type)
    if _is_text(kind) or pa.types.is_null(kind):
        return None  # a text may hold numbers: rows that do not are told apart one by one
    if dtype == object and (pa.types.is_integer(kind)):
        return None
    if dtype != object and _is_number(kind):
        return None
    wants = "text" if dtype == object else f"numbers ({dtype.name})"
    hint = f"--type {field.name}=text reads it as text" if dtype == object else "convert the column"
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
        policies[column if colon else ""] = NullPolicy(rule=name, fill=fill)  # type: ignore[arg-type]  # checked above
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
        return f"{'text' if dtype == object else dtype.name} has no NaN for a null"
    if policy.rule == "fill" and dtype != object:
        try:
            dtype.type(policy.fill)
        except (ValueError, OverflowError):
            return f"{policy.fill!r} is no {dtype.name} to fill nulls with"
    return ""


# -- columns to tensors -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows ready for the model, beside the columns that pass through."""

    kept: pa.RecordBatch
    tensors: dict[str, Tensor]

    @property
    def rows(self) -> int:
        """Rows held; every tensor has as many."""
        return int(self.kept.num_rows)

    def slice(self, start: int, stop: int) -> "Encoded":
        """Return rows `start` to `stop` without copying."""
        tensors = {name: tensor[start:stop] for name, tensor in self.tensors.items()}
        return Encoded(self.kept.slice(start, stop - start), tensors)

    def take(self, good: NDArray[np.bool_]) -> "Encoded":
        """Return only the rows where `good` is true."""
        tensors = {name: tensor[good] for name, tensor in self.tensors.items()}
        return Encoded(self.kept.filter(pa.array(good)), tensors)

    def joined(self, other: "Encoded") -> "Encoded":
        """Return these rows followed by those of `other`."""
        tensors = {n: np.concatenate((t, other.tensors[n])) for n, t in self.tensors.items()}
        return Encoded(pa.concat_batches([self.kept, other.kept]), tensors)


def encode(batch: pa.RecordBatch, binding: Binding, keep: Sequence[str]) -> tuple[Encoded, list[Misfit]]:
    """Turn columns into tensors.

    Args:
        batch: Rows as read; holds every column of `binding` and of `keep`.
        binding: Which column fills which input.
        keep: The columns that pass through to the output.

    Returns:
        All rows encoded, and the cells at fault; the caller takes their rows out.
    """
    misfits: list[Misfit] = []
    tensors = {feed.input: _fill(feed, batch, misfits) for feed in binding.feeds}
    return Encoded(batch.select(list(keep)), tensors), misfits


def _fill(feed: Feed, batch: pa.RecordBatch, misfits: list[Misfit]) -> Tensor:
    dtype = np.dtype(feed.dtype)
    cells = [
        _column_tensor(batch.column(name), name, dtype, policy, misfits)
        for name, policy in zip(feed.columns, feed.nulls, strict=True)
    ]
    if feed.rank == 1:
        return cells[0]
    if len(cells) == 1:
        return cells[0].reshape(-1, 1)
    return np.stack(cells, axis=1)


def _column_tensor(
    column: pa.Array, name: str, dtype: np.dtype[Any], policy: NullPolicy, misfits: list[Misfit]
) -> Tensor:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if dtype == object:
        return _strings(column, name, policy, misfits)
    if _is_text(column.type):
        column = _parsed(column, name, misfits)
    if pa.types.is_null(column.type):
        column = column.cast(pa.float64())
    if column.null_count == 0:
        return _cast(column, name, dtype, misfits)
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if policy.rule == "reject":
        parsed = {m.row for m in misfits if m.column == name}
        rows = [int(row) for row in np.flatnonzero(missing) if int(row) not in parsed]
        misfits += [Misfit(row, name, "MISSING", "", "null in a model column") for row in rows]
    tensor = _cast(pc.fill_null(column, _zero(column.type)), name, dtype, misfits)
    tensor = tensor.copy() if not tensor.flags.writeable else tensor
    tensor[missing] = _null_value(dtype, policy)
    return tensor


def _zero(kind: pa.DataType) -> pa.Scalar:
    return pa.scalar(0).cast(kind) if not pa.types.is_boolean(kind) else pa.scalar(value=False)


def _null_value(dtype: np.dtype[Any], policy: NullPolicy) -> Any:
    if policy.rule == "fill":
        return dtype.type(policy.fill)
    return np.nan if dtype.kind == "f" else dtype.type(0)


def _strings(column: pa.Array, name: str, policy: NullPolicy, misfits: list[Misfit]) -> Tensor:
    column = column if _is_text(column.type) else column.cast(pa.string())
    if column.null_count:
        if policy.rule == "reject":
            rows = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
            misfits += [Misfit(int(r), name, "MISSING", "", "null in a model column") for r in rows]
        column = column.fill_null(policy.fill)
    # One Python object per distinct text instead of one per row.
    coded = column.dictionary_encode()
    texts = coded.dictionary.to_numpy(zero_copy_only=False)
    strings: Tensor = np.asarray(texts, dtype=object)[coded.indices.to_numpy()]
    return strings


def _parsed(column: pa.Array, name: str, misfits: list[Misfit]) -> pa.Array:
    """Read a text column as numbers; a text that is none becomes null and a CAST misfit."""
    column = pc.if_else(pc.is_in(column, pa.array(NULL_TEXTS, column.type)), None, column)
    try:
        return column.cast(pa.float64())
    except pa.ArrowInvalid:
        pass
    texts = column.to_pylist()
    numbers = [number_or_none(text) for text in texts]
    for row, (text, number) in enumerate(zip(texts, numbers, strict=True)):
        if text is not None and number is None:
            misfits.append(Misfit(row, name, "CAST", text, "is no number"))
    return pa.array(numbers, pa.float64())


def number_or_none(text: str | None) -> float | None:
    """Return the number a text says, or None.

    Example:
        >>> number_or_none("1e3"), number_or_none("1,000")
        (1000.0, None)
    """
    try:
        return float(pa.scalar(text).cast(pa.float64()).as_py()) if text is not None else None
    except pa.ArrowInvalid:
        return None


def _cast(column: pa.Array, name: str, dtype: np.dtype[Any], misfits: list[Misfit]) -> Tensor:
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    source = column.to_numpy(zero_copy_only=False)
    if source.dtype == dtype:
        return source
    with np.errstate(over="ignore", invalid="ignore"):
        tensor: Tensor = source.astype(dtype)
        lost = _lost(source, tensor)
    if lost is not None and lost.any():
        reason = f"does not fit in {dtype.name}"
        for row in np.flatnonzero(lost):
            misfits.append(Misfit(int(row), name, "RANGE", str(source[row]), reason))
    return tensor


def _lost(source: Tensor, tensor: Tensor) -> NDArray[np.bool_] | None:
    """Return where a cast overflowed or cut digits off an integer; rounding is no loss."""
    if tensor.dtype.kind == "f":
        if source.dtype.kind != "f" or source.dtype.itemsize < tensor.dtype.itemsize:
            return None
        lost: NDArray[np.bool_] = np.isinf(tensor) & np.isfinite(source)
        return lost
    if tensor.dtype == bool:
        return None if source.dtype == bool else (source != 0) & (source != 1)
    back: NDArray[np.bool_] = tensor.astype(source.dtype) != source
    return back


# -- tensors to columns -----------------------------------------------------------------------


class Prediction(BaseModel, frozen=True):
    """One output of the model and the column it becomes."""

    output: str
    column: str
    kind: Literal["scalar", "list", "tensor", "struct"]
    shape: tuple[int, ...] = ()
    """Trailing dimensions of one row: () for a scalar."""
    keys: tuple[str, ...] = ()
    """Field names of a ZipMap's struct."""


def observe(output: str, column: str, values: Any, rows: int) -> Prediction:
    """Decide the column for an output from what one run of `rows` rows gave.

    [N] and [N, 1] become a scalar column, [N, k] a fixed-size list, deeper ones a fixed-shape
    tensor, a ZipMap's list of dicts a struct.

    Raises:
        ModelError: The output is not one value per row.
    """
    check_rows(output, values, rows)
    if isinstance(values, list):
        if not isinstance(values[0], dict):
            raise ModelError(f"output {output}: is a sequence, not one value per row", _CHOOSE)
        return Prediction(output=output, column=column, kind="struct", keys=_keys(values[0]))
    shape = tuple(values.shape[1:])
    if shape in {(), (1,)}:
        return Prediction(output=output, column=column, kind="scalar")
    kind: Literal["list", "tensor"] = "list" if len(shape) == 1 else "tensor"
    return Prediction(output=output, column=column, kind=kind, shape=shape)


_CHOOSE = "leave it out: --outputs NAMES"


def _keys(row: Mapping[Any, Any]) -> tuple[str, ...]:
    return tuple(str(key) for key in row)


def check_rows(output: str, values: Any, rows: int) -> None:
    """Check that an output has one entry per row.

    Raises:
        ModelError: It has another number of rows.
    """
    got = len(values) if isinstance(values, list) or values.ndim else 0
    if got != rows:
        shape = [got] if isinstance(values, list) else list(values.shape)
        message = f"output {output}: has shape {shape} for a batch of {rows} rows"
        raise ModelError(message, "each output must have one entry per row; " + _CHOOSE)


def decode(prediction: Prediction, values: Any) -> pa.Array:
    """Turn one output of one run into a column.

    Args:
        prediction: The column, as planned.
        values: An array [N], [N, 1], [N, k] or deeper, or a ZipMap's list of N dicts.

    Raises:
        ModelError: The output has another shape or other keys than when it was planned.
    """
    if prediction.kind == "struct":
        return _struct(prediction, values)
    if prediction.kind == "scalar":
        return pa.array(values.reshape(-1))
    if tuple(values.shape[1:]) != prediction.shape:
        got, planned = list(values.shape[1:]), list(prediction.shape)
        raise ModelError(f"output {prediction.output}: rows of shape {got}, planned {planned}")
    flat = pa.array(values.reshape(-1))
    size = int(np.prod(prediction.shape))
    storage = pa.FixedSizeListArray.from_arrays(flat, size)
    if prediction.kind == "list":
        return storage
    kind = pa.fixed_shape_tensor(flat.type, prediction.shape)
    return pa.ExtensionArray.from_storage(kind, storage)


def _struct(prediction: Prediction, values: list[dict[Any, Any]]) -> pa.Array:
    if _keys(values[0]) != prediction.keys:
        got = ", ".join(_keys(values[0]))
        raise ModelError(f"output {prediction.output}: keys {got}, planned {prediction.keys}")
    numbers = np.array([list(row.values()) for row in values], dtype=_value_dtype(values))
    columns = [pa.array(np.ascontiguousarray(column)) for column in numbers.T]
    return pa.StructArray.from_arrays(columns, names=list(prediction.keys))


def _value_dtype(values: list[dict[Any, Any]]) -> type[Any]:
    # onnxruntime hands a map's tensor(float) values out as Python floats.
    first = next(iter(values[0].values()), 0.0)
    return np.float32 if isinstance(first, float) else type(first)
