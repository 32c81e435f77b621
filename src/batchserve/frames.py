"""The same binding and session on a frame the caller holds, and the lazy frame of scored rows."""

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from batchserve import arrays, batches, binding, candidates, parity, recipes, scoring, spelling
from batchserve.config import Job
from batchserve.errors import DataError, UsageError, redacted
from batchserve.inputs import Look, Partition, cutting
from batchserve.model import Signature, session_for
from batchserve.modelfile import identify, operators
from batchserve.planning import Plan
from batchserve.rejects import Reject
from batchserve.scorers import Recipe
from batchserve.tally import Tally

if TYPE_CHECKING:
    import dask.dataframe as dd
    import pandas as pd

Frame = TypeVar("Frame")


class Model:
    """An ONNX model that scores frames: pandas, Polars, Arrow or Dask in, the same kind out.

    Args:
        path: The model's file, or a reference such as `models:/NAME/ALIAS`.
        model_sha256: What its sha256 must be.
        features: Columns of a wide input, in order; the model's metadata may hold them.
        map: Model input name to column name, where they differ.
        set: Model input name to the one value it always gets: a number, a text, or a list.
        on_null: What a null becomes: `reject`, `nan`, `fill=V`, with `COLUMN:` before for one.
        prefix: Put before the names of the predictions.
        batch_rows: Rows of every run of the model.
        custom_ops: Library of custom operators, or `extensions`; its code is run.
        device: Where the model runs: `cpu` or `cuda`.

    Raises:
        NotFoundError: There is no such file.
        ModelError: It is no model that onnxruntime runs.

    Example:
        >>> import batchserve as bs, pandas as pd
        >>> model = bs.Model("examples/iris/model.onnx")
        >>> rows = pd.DataFrame(
        ...     {"sepal_length": [5.1], "sepal_width": [3.5], "petal_length": [1.4], "petal_width": [0.2]}
        ... )
        >>> model.predict(rows)["label"].tolist()
        ['setosa']
    """

    def __init__(  # noqa: PLR0913  each is a flag of the command line
        self,
        path: str | PathLike[str],
        *,
        model_sha256: str | None = None,
        features: Sequence[str] = (),
        map: Mapping[str, str] | None = None,  # noqa: A002  the word of the command line
        set: Mapping[str, Any] | None = None,  # noqa: A002  as above
        on_null: str | Sequence[str] = (),
        prefix: str = "",
        batch_rows: int | None = None,
        custom_ops: str | PathLike[str] | None = None,
        device: str = "cpu",
    ) -> None:
        self._job = Job.model_validate(
            {
                "model": spelling.unnamed(fspath(path)), "model_sha256": model_sha256, "features": features,
                "map": map or {}, "set": set or {},
                "on_null": on_null, "prefix": prefix, "batch_rows": batch_rows, "keep": ("none",),
                "custom_ops": fspath(custom_ops) if custom_ops else None, "device": device,
            }
        )  # fmt: skip
        self._specs = recipes.named_models(self._job)
        (self._spec,) = self._specs.values()
        self._recipes: dict[str, Recipe] = {}
        self.signature: Signature = session_for(self._spec).signature()

    def predict(self, frame: Frame) -> Frame:
        """Score every row of a frame.

        Args:
            frame: A pandas, Polars, Arrow (table or record batch) or Dask frame.

        Returns:
            A frame of the same kind with one column per model output, same rows, same index.

        Raises:
            ModelError: A column is missing or has a type that cannot be bound.
            DataError: Some rows cannot be scored; the first ones are named.
        """
        kind = type(frame).__module__.partition(".")[0]
        convert = {"pandas": self._pandas, "polars": self._polars, "dask": self._dask}
        result: Frame = convert.get(kind, self._arrow)(frame)
        return result

    def _pandas(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        names = self._reads(list(frame.columns))
        # Columns that nobody reads may hold anything; if one is missing, all names are suggestions.
        readable = frame[names] if set(names) <= set(frame.columns) else frame.iloc[:0]
        table = pa.Table.from_pandas(readable, preserve_index=False)
        predicted: pd.DataFrame = self._table(table).to_pandas().set_index(frame.index)
        return predicted

    def _polars(self, frame: Any) -> Any:
        import polars as pl

        return pl.from_arrow(self._table(frame.to_arrow()))

    def _dask(self, frame: "dd.DataFrame") -> "dd.DataFrame":
        meta = self._pandas(frame._meta)  # noqa: SLF001  an empty frame of the right types
        predicted: dd.DataFrame = frame.map_partitions(self._pandas, meta=meta)
        return predicted

    def _arrow(self, frame: Any) -> Any:
        if isinstance(frame, pa.Table):
            return self._table(frame)
        if isinstance(frame, pa.RecordBatch):
            table = self._table(pa.Table.from_batches([frame])).combine_chunks()
            return table.to_batches()[0] if len(table) else arrays.empty_batch(table.schema)
        raise UsageError(f"{type(frame).__name__}: not a frame that can be scored", _KINDS)

    def _table(self, table: pa.Table) -> pa.Table:
        batch = _one_batch(self._needed(table))
        key = batch.schema.to_string()
        if key not in self._recipes:
            look = Look(batch.schema, batch.slice(0, _SAMPLE_ROWS))
            self._recipes[key] = recipes.recipe_for(self._job, self._specs, look)
        return predicted(batch, self._recipes[key])

    def _needed(self, table: pa.Table) -> pa.Table:
        """Leave out columns the model does not read, unless one it reads is missing."""
        names = self._reads(table.column_names)
        return table.select(names) if set(names) <= set(table.column_names) else table

    def _reads(self, present: Sequence[str]) -> list[str]:
        return binding.wanted_columns(self.signature, candidates.wish(self._job), present)

    def __repr__(self) -> str:
        ports = [f"  in   {port}" for port in self.signature.inputs]
        ports += [f"  out  {port}" for port in self.signature.outputs]
        return redacted("\n".join([f"Model({self._spec.path!r})", *ports]))


_SAMPLE_ROWS = 4096
_KINDS = "give a pandas, Polars, Arrow or Dask frame"


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else arrays.empty_batch(table.schema)


def predicted(batch: pa.RecordBatch, recipe: Recipe) -> pa.Table:
    """Score the rows of one batch; kept columns first, then predictions.

    Raises:
        DataError: Some rows cannot be scored.
    """
    given, misfits = scoring.encoded(batch, recipe)
    if misfits:
        shown = "; ".join(f"row {m.row} {m.column}: {m.value!r} {m.reason}" for m in misfits[:3])
        count = len({m.row for m in misfits})
        raise DataError(f"{count:,} of {batch.num_rows:,} rows cannot be scored: {shown}", _NULLS)
    if not batch.num_rows:
        return recipe.schema_.empty_table()
    columns = batches.predicted(scoring.runs_of(recipe), recipe, given, by_codes=False)
    return pa.Table.from_arrays([*given[0].kept.columns, *columns], schema=recipe.schema_)


_NULLS = "drop these rows, or say on_null='nan' or on_null='COLUMN:fill=VALUE'"


def scored(made: Plan) -> "dd.DataFrame":
    """Return the lazy Dask dataframe of input columns and predictions, to chain on.

    Args:
        made: A plan; its partitions become the frame's.

    Raises:
        DataError: At `compute`: some rows cannot be scored.
    """
    import dask.dataframe as dd

    meta = _pandas(made.recipe.schema_.empty_table())
    exact = cutting.settled(made.partitions, made.recipe.reading.dialect)
    frame: dd.DataFrame = dd.from_map(read_scored, exact, recipe=made.recipe, meta=meta, label="scored")
    return frame


def read_scored(partition: Partition, recipe: Recipe) -> "pd.DataFrame":
    """Score one partition into a pandas frame of Arrow-backed columns.

    Raises:
        DataError: Some rows cannot be scored.
    """
    found: list[Reject] = []
    tally = Tally(lambda _, reject: found.append(reject))
    tables = [recipe.schema_.empty_table()]
    for rows, columns in scoring.scored(partition, recipe, scoring.runs_of(recipe), tally):
        tables.append(pa.Table.from_arrays([*rows.kept.columns, *columns], schema=recipe.schema_))
    if found:
        first = found[0]
        shown = f"{first.place.path} byte {first.place.byte_offset}: {first.column} {first.reason}"
        raise DataError(f"{tally.rows_rejected:,} rows cannot be scored: {shown}", _NULLS)
    return _pandas(pa.concat_tables(tables))


def _pandas(table: pa.Table) -> "pd.DataFrame":
    import pandas as pd

    frame: pd.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype)
    return frame


def described(path: str, custom_ops: str | None = None, sha256: str | None = None) -> dict[str, str]:
    """Return what a model takes and gives, in words.

    Args:
        path: The model's file, or a reference.
        custom_ops: Library of custom operators that it needs, or None.
        sha256: What its sha256 must be, or None.

    Raises:
        NotFoundError: There is no such file.
        ModelError: It is no model that onnxruntime runs.
    """
    spec = identify(path, custom_ops=custom_ops, sha256=sha256)
    signature = session_for(spec).signature()
    facts = {"sha256": spec.sha256}
    facts |= {f"in  {port.name}": str(port).partition(": ")[2] for port in signature.inputs}
    facts |= {f"opt {port.name}": str(port).partition(": ")[2] for port in signature.optional}
    facts |= {f"out {port.name}": str(port).partition(": ")[2] for port in signature.outputs}
    facts |= parity.told(signature.metadata)
    counted = operators(spec.path)
    return facts | {"operators": ", ".join(f"{name} x{count}" for name, count in counted.items())}
