"""Which columns of an output are written with a dictionary: those whose values come again."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchserve as bs
from batchserve.outputs import dictionaries
from workbench import doubler

ROWS = 5_000
CHANCE = np.random.default_rng(5)
COLUMNS: dict[str, tuple[Any, bool]] = {
    "ids": ([f"id-{i:06d}" for i in CHANCE.permutation(ROWS)], False),
    "numbers": (CHANCE.permutation(ROWS), False),
    "measured": (CHANCE.random(ROWS), False),
    "prices": (CHANCE.choice([0.99, 4.5, 12.0], ROWS), True),
    "codes": (CHANCE.integers(0, 100, ROWS), True),
    "cities": (CHANCE.choice(["Ulm", "Bonn", "Kiel"], ROWS), True),
    "mostly null": ([1.5 if i % 100 == 0 else None for i in range(ROWS)], False),  # too few to judge
    "null": (pa.nulls(ROWS), True),
    "coded": (pa.array(["a", "b"] * (ROWS // 2)).dictionary_encode(), True),
    "lists": ([[1, 2]] * ROWS, False),
}


def written(path: Path) -> set[str]:
    """Return the columns of a Parquet file that have a dictionary."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    return {column.path_in_schema.split(".")[0] for column in columns if column.has_dictionary_page}


def test_values_that_come_again_have_a_dictionary(tmp_path: Path) -> None:
    """Columns are judged by their first rows, whatever their type; the output has what the plan says."""
    table = pa.table({"x": np.arange(ROWS) / 3} | {name: values for name, (values, _) in COLUMNS.items()})
    pq.write_table(table, tmp_path / "in.parquet")
    model = doubler(tmp_path / "model.onnx")

    report = bs.score(str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), model=model)

    wanted = {name for name, (_, coded) in COLUMNS.items() if coded}
    assert set(report.receipt.runs[0].plan.recipe.coded) == wanted
    assert written(tmp_path / "out.parquet") == wanted
    back = pq.read_table(tmp_path / "out.parquet").select(table.column_names)
    assert back.to_pydict() == table.to_pydict()


@pytest.mark.parametrize(("kind", "coded"), [(pa.float32(), False), (pa.string(), True), (pa.int64(), True)])
def test_unseen_columns_are_judged_by_their_type(kind: pa.DataType, coded: bool) -> None:
    """What nobody has seen, predictions or a column of few rows, has a dictionary unless it is a float."""
    schema = pa.schema([("new", kind)])
    few = pa.RecordBatch.from_arrays([pa.nulls(3, kind)], schema=schema)

    assert dictionaries(schema) == dictionaries(schema, few) == (("new",) if coded else ())
