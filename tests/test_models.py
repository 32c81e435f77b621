"""Models of every kind through files: what fills their inputs, what their outputs become, what is refused."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import LocalCluster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import batchserve as bs
import models
from batchserve import constants, frames, modelfile, preview, proof, runs, verify
from batchserve import lists as listing
from batchserve import model as model_module
from batchserve.arrays import array_of
from batchserve.binding import Binding, Feed
from batchserve.codec import encode
from batchserve.console import summary_lines
from batchserve.errors import ModelError, NotFoundError
from batchserve.model import Port, session_for
from batchserve.nulls import NullPolicy
from batchserve.predictions import joined
from workbench import doubler, spawn

FLOATS = ("float16", "float32", "float64")


def score(folder: Path, table: pa.Table, **options: Any) -> pa.Table:
    """Score a table through a Parquet file; return the predictions alone."""
    pq.write_table(table, folder / "in.parquet")
    output = folder / "out.parquet"
    bs.score(folder / "in.parquet", output, keep="none", overwrite=True, **options)
    return pq.read_table(output)


def refused(folder: Path, table: pa.Table, **options: Any) -> bs.BatchserveError:
    """Return the error that scoring a table ends with."""
    with pytest.raises(bs.BatchserveError) as caught:
        score(folder, table, **options)
    return caught.value


def lists(values: Any, kind: pa.DataType | None = None) -> pa.Table:
    """Return a table of one column X."""
    return pa.table({"X": pa.array(values, kind)})


# -- lists for wide inputs --------------------------------------------------------------------

COLUMNS: dict[str, Callable[[Any], pa.Array]] = {
    "list": lambda rows: pa.array(rows.tolist(), pa.list_(pa.float32())),
    "large": lambda rows: pa.array(rows.tolist(), pa.large_list(pa.float32())),
    "fixed": lambda rows: pa.array(rows.tolist(), pa.list_(pa.float32(), 3)),
    "double": lambda rows: pa.array(rows.tolist(), pa.list_(pa.float64())),
    "tensor": lambda rows: pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [3]), pa.FixedSizeListArray.from_arrays(rows.reshape(-1), 3)
    ),
    "texts": lambda rows: pa.array([[repr(float(v)) for v in row] for row in rows]),
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("width", [3, "k"])
def test_one_column_of_lists_fills_a_wide_input(kind: str, width: int | str, tmp_path: Path) -> None:
    """An input [N, k] takes the column of its name if that holds lists of k, whatever their type."""
    rows = np.arange(9, dtype=np.float32).reshape(3, 3) / 7

    scored = score(
        tmp_path, pa.table({"X": COLUMNS[kind](rows)}), model=models.echo(tmp_path, "float32", width)
    )

    assert scored["same"].to_pylist() == rows.tolist()


def test_several_wide_inputs_take_a_column_of_lists_each(tmp_path: Path) -> None:
    """Two wide inputs take a column of lists by name or --map; the third takes a column of numbers."""
    table = pa.table({"A": [[1.0, 2.0, 3.0]], "other": [[4.0, 5.0]], "c": [6]})

    scored = score(tmp_path, table, model=models.two_wide(tmp_path), map={"B": "other"})

    assert scored["all"].to_pylist() == [[1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize(
    ("metadata", "options"),
    [
        ({"batchserve.features.A": "a,b,c", "batchserve.features.B": "d,e"}, {}),
        ({"batchserve.features.A": "a,b,c"}, {"features": ["d", "e"]}),
        ({"batchserve.features": "d,e", "batchserve.features.A": '["a","b","c"]'}, {}),
    ],
    ids=["both", "flag", "shared"],
)  # fmt: skip
def test_the_metadata_may_name_the_columns_per_input(
    metadata: dict[str, str], options: dict[str, Any], tmp_path: Path
) -> None:
    """`batchserve.features.INPUT` names the columns of one wide input; what is left takes the others."""
    table = pa.table({name: [float(i)] for i, name in enumerate("abcdefc")} | {"c": [2.0]})

    scored = score(tmp_path, table, model=models.two_wide(tmp_path, metadata), **options)

    assert scored["all"].to_pylist() == [[0, 1, 2, 3, 4, 2]]


def test_a_list_and_features_stand_side_by_side(tmp_path: Path) -> None:
    """Of two wide inputs one takes lists, and --features fills the other."""
    table = pa.table({"A": [[1.0, 2.0, 3.0]], "p": [4.0], "q": [5.0], "c": [6]})

    scored = score(tmp_path, table, model=models.two_wide(tmp_path), features=["p", "q"])

    assert scored["all"].to_pylist() == [[1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize(
    "rows",
    [
        lambda images: images.tolist(),
        lambda images: images.reshape(len(images), -1).tolist(),
    ],
    ids=["nested", "flat"],
)
def test_images_come_from_nested_or_flat_lists(rows: Callable[[Any], Any], tmp_path: Path) -> None:
    """An input of rank 4 takes lists nested three deep, or flat lists of as many values."""
    images = np.random.default_rng(1).standard_normal((5, 2, 3, 4)).astype(np.float32)

    scored = score(tmp_path, pa.table({"image": rows(images)}), model=models.image(tmp_path, 2, 3, 4))

    padded = images[np.minimum(np.arange(1024), 4)]
    session = ort.InferenceSession(tmp_path / "image.onnx")
    expected = session.run(None, {"image": padded})[0][:5]
    assert scored["mean"].to_numpy().tobytes() == expected.tobytes()


def test_the_first_rows_fix_what_the_model_leaves_open(tmp_path: Path) -> None:
    """Open dimensions are those of the first row that has any; rows of other sizes are rejects."""
    rows = [None, [[1.0, 2.0]], [[3.0, 4.0]], [[5.0], [6.0]], [[7.0, 8.0, 9.0]]]
    table = lists(rows)

    error = refused(tmp_path, table, model=models.echo(tmp_path, "float32", "a", "b"), on_null="fill=0")

    assert error.exit_code == 65
    assert "2 of 5 rows" in error.message
    assert "CAST X: 2 rows" in error.message
    assert "row 4: has 2 values, 1 is wanted" in error.message
    assert "row 5: has 3 values, 2 are wanted" in error.message


def test_a_flat_list_gives_the_one_open_dimension(tmp_path: Path) -> None:
    """With one open dimension, the values of a flat list say how large it is."""
    table = lists([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])

    scored = score(tmp_path, table, model=models.echo(tmp_path, "float32", "a", 2))

    assert scored["same"].to_pylist() == [[1, 2, 3, 4, 5, 6]]
    assert scored.schema.field("same").type.shape == [3, 2]


def test_ragged_lists_are_told_row_by_row(tmp_path: Path) -> None:
    """Lists of a wrong size are rejects of class CAST, with both sizes; the class of values is kept."""
    table = lists([[1.0, 2.0], [1.0], [3.0, 4.0], [], [5.0, 1e39], [None, 1.0], None])

    error = refused(tmp_path, table, model=models.echo(tmp_path, "float32", 2))

    lines = [line.strip() for line in error.message.splitlines()]
    assert lines[0].startswith("5 of 7 rows cannot be scored")
    assert "CAST X: 2 rows" in lines
    assert "MISSING X: 2 rows" in lines
    assert "RANGE X: 1 row" in lines
    assert any(line.endswith("row 2: has 1 value, 2 are wanted") for line in lines)
    assert any(line.endswith("row 4: has 0 values, 2 are wanted") for line in lines)
    assert any(line.endswith("row 5: '1e+39' does not fit in float32") for line in lines)


def test_nulls_in_lists_follow_the_rule_of_the_column(tmp_path: Path) -> None:
    """A null in a list, a null list in a list and a null list become what --on-null says, and are counted."""
    table = lists([[[1, 2], [3, 4]], [[None, 2], [3, 4]], [[1, 2], None], None])
    model = models.echo(tmp_path, "int32", 2, 2)
    pq.write_table(table, tmp_path / "in.parquet")

    done = bs.score(
        tmp_path / "in.parquet", tmp_path / "o.parquet", model=model, on_null="X:fill=9", keep="none"
    )

    values = pq.read_table(tmp_path / "o.parquet")["same"].to_pylist()
    assert values == [[1, 2, 3, 4], [9, 2, 3, 4], [1, 2, 9, 9], [9, 9, 9, 9]]
    assert done.receipt.nulls == {"X": 3}


@pytest.mark.parametrize(
    ("column", "dims", "says"),
    [
        (pa.array([[1.0]], pa.list_(pa.float32(), 1)), (3,), "a row must hold [3] values"),
        (pa.array([[[1.0]]]), (3,), "a row must hold [3] values"),
        (pa.array([[1.0]]), ("a", "b"), "a row must hold [any number, any number] values"),
        (pa.array([1.0]), (2, 2), "no column X holds"),
        (pa.array([[{"a": 1}]]), (1, 2), "column X is"),
    ],
    ids=["size", "deep", "open", "scalar", "struct"],
)  # fmt: skip
def test_lists_that_cannot_fit_are_told_before_any_work(
    column: pa.Array, dims: tuple[int | str, ...], says: str, tmp_path: Path
) -> None:
    """A column whose type rules every row out is an error of the plan, with the way out."""
    error = refused(tmp_path, pa.table({"X": column}), model=models.echo(tmp_path, "float32", *dims))

    assert error.exit_code == 70
    assert says in error.message


def test_a_turned_tensor_is_refused(tmp_path: Path) -> None:
    """A tensor column that is stored in another order than its shape says is not taken for plain."""
    kind = pa.fixed_shape_tensor(pa.float32(), [2, 2], permutation=[1, 0])
    storage = pa.array([[1, 2, 3, 4]], pa.list_(pa.float32(), 4))
    table = pa.table({"X": pa.ExtensionArray.from_storage(kind, storage)})

    assert (
        "a row must hold [2, 2]"
        in refused(tmp_path, table, model=models.echo(tmp_path, "float32", 2, 2)).message
    )


@pytest.mark.parametrize("dtype", models.KINDS_OF_TENSOR)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_type_goes_in_and_out_unchanged(dtype: str, data: st.DataObject, tmp_path: Path) -> None:
    """Values of each of ONNX's types that columns have come back to the bit, in rows of any shape."""
    dims = data.draw(st.sampled_from([(), (1,), (3,), (2, 2), (1, 2, 3)]))
    shape = (data.draw(st.integers(1, 5)), *dims)
    texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
    elements = texts if dtype == "object" else None
    values = data.draw(hnp.arrays(dtype, shape, elements=elements, fill=st.nothing()))
    flat = pa.array(values.reshape(-1).tolist() if dtype == "object" else values.reshape(-1))
    for level in reversed(range(1, 1 if dims == (1,) else values.ndim)):
        offsets = np.arange(np.prod(values.shape[:level]) + 1) * values.shape[level]
        flat = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)

    scored = score(tmp_path, pa.table({"X": flat}), model=models.echo(tmp_path, dtype, *dims))

    column = scored["same"].combine_chunks()
    inner = column.storage if isinstance(column, pa.ExtensionArray) else column
    plain = inner.flatten() if pa.types.is_nested(inner.type) else inner
    if dtype in {"object", "bool"}:
        assert plain.to_pylist() == values.reshape(-1).tolist()
    else:
        assert plain.to_numpy().dtype == dtype
        assert plain.to_numpy().tobytes() == values.tobytes()


def test_a_column_of_nulls_alone_is_one_of_lists(tmp_path: Path) -> None:
    """Rows that are all null have no type: each is what --on-null says, in the size of the model."""
    model = models.echo(tmp_path, "int32", 2)
    table = pa.table({"X": pa.nulls(2)})

    assert score(tmp_path, table, model=model, on_null="fill=3")["same"].to_pylist() == [[3, 3], [3, 3]]
    assert "MISSING X: 2 rows" in refused(tmp_path, table, model=model).message


def test_frames_of_lists_are_scored(tmp_path: Path) -> None:
    """pandas, Polars and Dask frames with lists or arrays in their cells give one list per row."""
    model = bs.Model(models.echo(tmp_path, "float32", 2))
    frame = pd.DataFrame({"X": [[1.0, 2.0], [3.0, 4.0]], "unread": [object(), None]})

    expected = [[1.0, 2.0], [3.0, 4.0]]
    assert [list(row) for row in model.predict(frame)["same"]] == expected
    arrays = pd.DataFrame({"X": [np.array(row) for row in expected]})
    assert [list(row) for row in model.predict(arrays)["same"]] == expected
    assert model.predict(pl.DataFrame({"X": expected}))["same"].to_list() == expected
    with dask.config.set({"dataframe.convert-string": False}):  # or Dask would make texts of the lists
        lazy = model.predict(dd.from_pandas(frame[["X"]], npartitions=2))
    assert [list(row) for row in lazy.compute(scheduler="threads")["same"]] == expected
    with pytest.raises(bs.BatchserveError, match="1 of 2 rows cannot be scored: row 1 X: '' has 1 value"):
        model.predict(pa.table({"X": [[1.0, 2.0], [3.0]]}))


def test_an_output_with_constants_and_lists_is_verified(tmp_path: Path) -> None:
    """`verify` scores rows again with the values that the plan holds, also with the model elsewhere."""
    table = pa.table({"x": [[float(i), 2.0, 3.0] for i in range(300)]})
    model = models.scaled(tmp_path)
    score(tmp_path, table, model=model, set={"by": 10, "plus": [1, 2, 3]})
    moved = shutil.move(model, tmp_path / "moved.onnx")

    checked = verify.verify(str(tmp_path / "out.parquet"), model=str(moved))

    assert (checked.differences, checked.skipped, checked.rows_scored) == ([], [], 300)


def test_inspect_shows_inputs_that_have_a_value(tmp_path: Path) -> None:
    """What a model takes is shown with what it may be left without."""
    facts = frames.described(str(models.scaled(tmp_path)))

    assert facts["in  by"] == "tensor(float) []"
    assert facts["opt less"] == "tensor(float) [3]"


def test_a_line_with_another_kind_of_list_is_told(tmp_path: Path) -> None:
    """Fractions after a megabyte of whole numbers are rejects that say how they are read; then they are."""
    lines = tmp_path / "in.jsonl"
    lines.write_text('{"X": [1, 2]}\n' * 100_000 + '{"X": [0.5, 1]}\n')
    options: Any = {"model": models.echo(tmp_path, "float32", 2), "keep": "none"}

    with pytest.raises(bs.BatchserveError, match=r"in.jsonl:100001: .* is no list<.*--infer full"):
        bs.score(lines, tmp_path / "out.parquet", **options)
    report_of = bs.score(lines, tmp_path / "out.parquet", infer="full", **options)

    assert report_of.rows == 100_001
    assert pq.read_table(tmp_path / "out.parquet")["same"][100_000].as_py() == [0.5, 1.0]


def test_json_lines_have_lists_too(tmp_path: Path) -> None:
    """A list in a JSON line fills a wide input; one of another size is a reject with its line."""
    lines = tmp_path / "in.jsonl"
    lines.write_text('{"X": [1, 2.5]}\n{"X": [3, 4]}\n')
    model = models.echo(tmp_path, "float32", 2)
    bs.score(lines, tmp_path / "out.parquet", model=model, keep="none")

    assert pq.read_table(tmp_path / "out.parquet")["same"].to_pylist() == [[1, 2.5], [3, 4]]
    lines.write_text('{"X": [1, 2.5]}\n{"X": [3]}\n')
    with pytest.raises(bs.BatchserveError, match=r"in.jsonl:2: has 1 value, 2 are wanted"):
        bs.score(lines, tmp_path / "other.parquet", model=model)


# -- constants --------------------------------------------------------------------------------


def test_set_gives_an_input_one_value(tmp_path: Path) -> None:
    """--set fills a single value, every row of an input like the others, and an optional input."""
    table = pa.table({"x": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]})
    model = models.scaled(tmp_path)

    plain = score(tmp_path, table, model=model, set={"by": 10, "plus": "[1, 2, 3]"})
    less = score(tmp_path, table, model=model, set={"by": "10", "plus": 0.5, "less": [1, 2, 3]})

    assert plain["y"].to_pylist() == [[11, 22, 33], [41, 52, 63]]
    assert less["y"].to_pylist() == [[9.5, 18.5, 27.5], [39.5, 48.5, 57.5]]


def test_set_belongs_to_the_plan(tmp_path: Path) -> None:
    """Another value is another plan, and `plan` says which value an input gets."""
    pq.write_table(pa.table({"x": [[1.0, 2.0, 3.0]]}), tmp_path / "in.parquet")
    model = models.scaled(tmp_path)

    first = bs.plan(tmp_path / "in.parquet", model=model, set={"by": 10, "plus": 0})
    other = bs.plan(tmp_path / "in.parquet", model=model, set={"by": 11, "plus": 0})

    assert first.plan.plan_id != other.plan.plan_id
    facts = preview.plan_facts(first.plan)
    assert facts["in  by"] == "10 (float32) of shape [], in every run"
    assert facts["in  plus"] == "0 (float32) in every row, in every run"


def test_a_text_may_be_set(tmp_path: Path) -> None:
    """A text is taken as it is, without quotes; JSON works too."""
    model = models.named(tmp_path)
    table = pa.table({"a": [1.0], "b": [2.0]})

    plain = score(tmp_path, table, model=model, set={"kind": "red"})
    quoted = score(tmp_path, table, model=model, set={"kind": '"red"'})

    column = score(tmp_path, table.append_column("kind", pa.array(["red"])), model=model)
    assert plain.equals(column)
    assert quoted.equals(column)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"by": "ten"}, "--set by=ten: is no float"),
        ({"by": "[1, 2]"}, "--set by=[1, 2]: has shape [2], the input is by: tensor(float) []"),
        ({"by": "1e39"}, "--set by=1e39: is no float"),
        ({"by": "[[1], [2, 3]]"}, "is no float"),
        ({"less": "[1, 2]"}, "has shape [2], the input is less: tensor(float) [3]"),
        ({"by": "[[1]"}, "is no float"),
        ({"by": '"1"'}, "is no float"),
        ({"near": "1"}, "--set near=...: the model has no input near"),
        ({}, "input by: tensor(float) []: is a single value, no column can fill it"),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_is_told(wish: dict[str, str], says: str, tmp_path: Path) -> None:
    """Each way in which a value and its input do not fit is told before any work."""
    table = pa.table({"x": [[1.0, 2.0, 3.0]], "plus": [[1.0, 2.0, 3.0]]})

    error = refused(tmp_path, table, model=models.scaled(tmp_path), set=wish)

    assert error.exit_code == 70
    assert says in str(error)


def test_a_value_for_an_input_of_texts_must_be_text(tmp_path: Path) -> None:
    """A list of numbers is no list of texts; an input of a type that nothing has cannot be set at all."""
    table = pa.table({"a": [1.0], "b": [2.0]})
    error = refused(tmp_path, table, model=models.named(tmp_path), set={"kind": "[1]"})

    assert "--set kind=[1]: is no text" in error.message
    with pytest.raises(ModelError, match=r"--set x=1: input x: .*int4.* cannot be given"):
        constants.constant(Port(name="x", type="tensor(int4)", shape=(2,)), "1", [None])


@pytest.mark.parametrize(
    ("wanted", "has", "fits"),
    [
        ((None, 0), (3,), None),
        ((None, 2), (3,), None),
        ((None, 2), (None,), (None, 2)),
        ((None, None), (None,), None),
        ((None, None), (4,), None),
        ((2, 2), (2, 2, 1), (2, 2)),
        ((2, 2), (None, None, 1), None),
        ((), (), ()),
    ],
    ids=str,
)
def test_what_lists_say_of_a_row(wanted: listing.Dims, has: listing.Dims, fits: listing.Dims | None) -> None:
    """Lists fit level by level, or as a flat list whose size gives the one open dimension."""
    assert listing.fitted(wanted, has) == fits


def test_the_first_list_that_fits_gives_the_sizes() -> None:
    """Rows that cannot be what the input wants decide nothing; without any row, a size is 1."""
    column = pa.array([None, [1.0, 2.0, 3.0], [1.0, 2.0]])

    assert listing.sized(column, (None, 2)) == (1, 2)
    assert listing.sized(column.slice(0, 1), (None, 2)) == (1, 2)
    assert listing.sized(pa.array([[[1.0], [2.0]], []]), (None, None)) == (2, 1)


def test_a_model_frame_takes_constants_and_lists(tmp_path: Path) -> None:
    """`Model` takes set= and columns of lists as a job does."""
    table = pa.table({"x": [[1.0, 2.0, 3.0]], "unread": [None]})

    predicted = bs.Model(models.scaled(tmp_path), set={"by": 2, "plus": [0, 0, 1]}).predict(table)

    assert predicted["y"].to_pylist() == [[2, 4, 7]]
    frame = table.to_pandas()
    assert bs.Model(tmp_path / "scaled.onnx", set={"by": 2, "plus": 0}).predict(frame)["y"][0].tolist() == [
        2,
        4,
        6,
    ]


def test_all_inputs_set_is_refused(tmp_path: Path) -> None:
    """A model that no column feeds would give every row the same score."""
    error = refused(tmp_path, lists([1.0]), model=models.echo(tmp_path, "float32", 1), set={"X": 1})

    assert "no input of the model is filled from a column" in error.message


def test_workers_elsewhere_get_constants_and_lists_too(process_cluster: LocalCluster, tmp_path: Path) -> None:
    """Several partitions in other processes give the bytes of one partition here."""
    rows = np.random.default_rng(2).standard_normal((3_000, 3)).astype(np.float32)
    pq.write_table(pa.table({"x": rows.tolist()}), tmp_path / "in.parquet", row_group_size=500)
    options: Any = {"model": models.scaled(tmp_path), "set": {"by": 3, "plus": [1, 2, 3]}, "keep": "none"}

    there = bs.score(
        tmp_path / "in.parquet",
        tmp_path / "a.parquet",
        cluster=process_cluster,
        partition_size=20_000,
        **options,
    )
    here = bs.score(tmp_path / "in.parquet", tmp_path / "b.parquet", **options)

    assert there.partitions > here.partitions == 1
    assert pq.read_table(tmp_path / "a.parquet").equals(pq.read_table(tmp_path / "b.parquet"))


# -- batches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_a_fixed_batch_is_filled_up(batch: int, tmp_path: Path) -> None:
    """A model of a fixed batch scores any number of rows in runs of that size, and `plan` says so."""
    rows = np.arange(70, dtype=np.float32).reshape(35, 2)
    model = models.echo(tmp_path, "float32", 2, batch=batch)

    scored = score(tmp_path, lists(rows.tolist()), model=model)

    assert scored["same"].to_pylist() == rows.tolist()
    planned = bs.plan(tmp_path / "in.parquet", model=model).plan
    assert planned.recipe.batch_rows == batch
    assert (
        preview.plan_facts(planned)["batch rows"] == f"{batch} in every run of the model, fixed in the model"
    )


@pytest.mark.parametrize(("width", "rows"), [(4, 1024), (20_000, 256), (300_000, 64)])
def test_wide_rows_are_run_in_smaller_batches(width: int, rows: int, tmp_path: Path) -> None:
    """Rows of a run are fewer where a row is large, whatever memory there is: at least 64."""
    pq.write_table(lists([[1.0] * width]), tmp_path / "in.parquet")

    planned = bs.plan(tmp_path / "in.parquet", model=models.echo(tmp_path, "float32", width)).plan

    assert planned.recipe.batch_rows == rows
    assert preview.plan_facts(planned)["batch rows"] == f"{rows:,} in every run of the model"


def test_inputs_of_two_batch_sizes_are_told(tmp_path: Path) -> None:
    """Two fixed sizes cannot both be the batch: the message names --set."""
    node = onnx.helper.make_node("Add", ["X", "Y"], ["Z"])
    ports = [models._input("X", models.FLOAT, [3, 2]), models._input("Y", models.FLOAT, [1, 2])]
    model = models._write(tmp_path / "two.onnx", [node], ports, [models._input("Z", models.FLOAT, [3, 2])])
    table = pa.table({"X": [[1.0, 2.0]], "Y": [[1.0, 2.0]]})

    error = refused(tmp_path, table, model=model)

    assert "differ in their first dimension, the batch: X: tensor(float) [3, 2], Y:" in error.message
    assert "--set" in error.hint
    assert score(tmp_path, table, model=model, set={"Y": [[5, 6]]})["Z"].to_pylist() == [[6, 8]]


# -- outputs ----------------------------------------------------------------------------------


def test_rows_may_give_as_many_values_as_they_like(tmp_path: Path) -> None:
    """A model of one row a run, with an open output, gives lists of any size."""
    rows = [[1.0, -1.0, 2.0], [-1.0, -2.0, -3.0], [4.0, 5.0, 6.0]]

    scored = score(tmp_path, lists(rows), model=models.positives(tmp_path))

    assert scored["positive"].type == pa.list_(pa.float32())
    assert scored["positive"].to_pylist() == [[1, 2], [], [4, 5, 6]]


def test_a_sequence_with_one_tensor_per_row_is_a_column(tmp_path: Path) -> None:
    """A sequence of as many tensors as rows becomes lists, over several runs of the model."""
    rows = np.arange(600, dtype=np.float32).reshape(200, 3)

    scored = score(tmp_path, lists(rows.tolist()), model=models.pieces(tmp_path), batch_rows=64)

    assert scored["rows"].to_pylist() == [[row] for row in rows.tolist()]


def test_bfloat16_comes_out_as_float32(tmp_path: Path) -> None:
    """A bfloat16 output is written as float32: the same number."""
    model = models.cast(tmp_path, onnx.TensorProto.BFLOAT16)

    scored = score(tmp_path, lists([[1.5, 2.3]]), model=model)

    assert scored["Y"].type == pa.list_(pa.float32(), 2)
    assert scored["Y"].to_pylist() == [[1.5, 2.296875]]  # 8 bits of 2.3


def test_bfloat16_of_no_values_and_beside_texts(tmp_path: Path) -> None:
    """An empty bfloat16 output is an empty float32; onnxruntime gives none to a model with texts."""
    kind = onnx.TensorProto.BFLOAT16
    session = session_for(modelfile.identify(str(models.cast(tmp_path, kind))))
    (empty,) = session.run(["Y"], {"X": np.zeros((0, 2), np.float32)})
    assert (empty.dtype, empty.shape) == (np.dtype("float32"), (0, 2))

    model = onnx.load(tmp_path / "cast.onnx")
    model.graph.input.append(models._input("s", models.STRING, [None, 1]))
    model.graph.output.append(models._input("t", models.STRING, [None, 1]))
    model.graph.node.append(onnx.helper.make_node("Identity", ["s"], ["t"]))
    onnx.save(model, tmp_path / "texts.onnx")
    error = refused(tmp_path, pa.table({"X": [[1.0, 2.0]], "s": ["a"]}), model=tmp_path / "texts.onnx")
    assert "gives no bfloat16 output to a model with text inputs" in error.message


@pytest.mark.parametrize("kind", ["FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT4"])
def test_types_that_no_column_has_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    """An output of a type that Arrow lacks is refused before any work, by its name."""
    model = models.cast(tmp_path, getattr(onnx.TensorProto, kind))

    error = refused(tmp_path, lists([[1.5, 2.3]]), model=model)

    assert error.exit_code == 70
    assert f"output Y: is of type tensor({kind.lower()}), which no column type holds" in error.message


def test_one_value_for_the_whole_batch_is_refused(tmp_path: Path) -> None:
    """An output without rows ends the job with its shape."""
    error = refused(tmp_path, lists([[1.0, 2.0, 3.0, 4.0]]), model=models.one_for_all(tmp_path))

    assert error.exit_code == 70
    assert "output sum: has shape [] for a batch of 1024 rows" in error.message


# -- rows that are not independent ------------------------------------------------------------


def test_a_sum_of_integers_over_the_batch_is_found(tmp_path: Path) -> None:
    """Integers are varied too: a reduction over the batch shows, and its operator is named."""
    error = refused(tmp_path, pa.table({"i": [1, 2, 3]}), model=models.sum_of_integers(tmp_path))

    assert "scores of share change when rows stand beside an outlier" in error.message
    assert "ReduceSum" in error.message


def test_integers_at_their_end_and_empty_rows_are_varied(tmp_path: Path) -> None:
    """The largest integer has no larger one beside it, and no values cannot be varied."""
    outlier = proof._outlier(np.array([127, -3], np.int8))
    empty = score(tmp_path, lists([[], []], pa.list_(pa.int64())), model=models.echo(tmp_path, "int64", 0))

    assert outlier == -3
    assert empty["same"].to_pylist() == [[], []]


def test_a_model_that_fails_on_its_rows_is_told_by_the_plan(tmp_path: Path) -> None:
    """A model that cannot take the rows in another order fails before any work, with its own message."""
    node = onnx.helper.make_node("SplitToSequence", ["X", "sizes"], ["rows"], axis=0)
    ports = [models._input("X", models.FLOAT, ["N", 2]), models._input("sizes", models.INT64, [2])]
    rows = onnx.helper.make_tensor_sequence_value_info("rows", models.FLOAT, None)
    model = models._write(tmp_path / "split.onnx", [node], ports, [rows])

    error = refused(tmp_path, pa.table({"X": [[1.0, 2.0]]}), model=model, set={"sizes": "[3, 4]"})

    assert error.exit_code == 70
    assert "split_size_sum" in error.message


def test_halves_of_other_sizes_are_put_together() -> None:
    """Halves of a run that lacked memory may give rows of other sizes: they become lists of rows."""
    whole, halves = np.zeros((2, 3)), [np.zeros((1, 3)), np.ones((1, 2))]

    assert joined([whole, [*halves[0], *halves[1]]])[3].tolist() == [1, 1]
    assert [row.tolist() for row in runs._both(*halves)] == [[0, 0, 0], [1, 1]]
    assert runs._both(whole, whole).shape == (4, 3)


def test_random_scores_are_found(tmp_path: Path) -> None:
    """A model that gives other scores at every run is refused as that."""
    error = refused(tmp_path, lists([[1.0, 2.0, 3.0, 4.0]]), model=models.random(tmp_path))

    assert "scores of noise differ when the same rows are run again" in error.message


# -- files and libraries ----------------------------------------------------------------------


def test_weights_beside_the_model_are_part_of_it(tmp_path: Path) -> None:
    """Another file of weights is another model: another sha256, and no session of the first one."""
    model = models.weights_beside(tmp_path)
    rows = lists([[1.0, 2.0, 3.0, 4.0]])
    before = score(tmp_path, rows, model=model)
    spec = modelfile.identify(str(model))
    assert modelfile.weights_files(model) == ["weights.bin"]
    assert before.equals(score(tmp_path, rows, model=tmp_path / "wide.onnx"))

    weights = np.fromfile(tmp_path / "weights.bin", np.float32)
    (weights * 2).tofile(tmp_path / "weights.bin")

    assert modelfile.identify(str(model)).sha256 != spec.sha256
    after = score(tmp_path, rows, model=model)
    assert after["total"].to_pylist() != before["total"].to_pylist()


def test_weights_that_are_missing_are_told(tmp_path: Path) -> None:
    """A model without its file of weights is exit 70, and the hint says what has to be there."""
    model = models.weights_beside(tmp_path)
    (tmp_path / "weights.bin").unlink()

    error = refused(tmp_path, lists([[1.0, 2.0, 3.0, 4.0]]), model=model)

    assert error.exit_code == 70
    assert "beside the model" in error.hint


@given(st.binary(max_size=60).map(lambda text: text + b"\x0a\x08location\x12\x05a.bin" + text))
@settings(max_examples=50, deadline=None)
def test_any_bytes_may_be_searched_for_weights(raw: bytes) -> None:
    """Bytes of all kinds before and after the name of a file do not hide it or break the search."""
    assert "a.bin" in set(modelfile._locations(raw))


def test_a_foreign_operator_asks_for_its_library(tmp_path: Path) -> None:
    """A model with an operator that nobody knows is exit 70, and the hint names --custom-ops."""
    error = refused(tmp_path, pa.table({"s": ["a"]}), model=models.foreign(tmp_path))

    assert error.exit_code == 70
    assert "--custom-ops LIB" in error.hint


def test_a_library_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing library, a file that is no library, and a package that is not installed are told apart."""
    model = models.foreign(tmp_path)
    table = pa.table({"s": ["a"]})
    (tmp_path / "none.so").write_text("no library")
    monkeypatch.setitem(sys.modules, "onnxruntime_extensions", None)

    missing = refused(tmp_path, table, model=model, custom_ops="nowhere.so")
    broken = refused(tmp_path, table, model=model, custom_ops=str(tmp_path / "none.so"))
    package = refused(tmp_path, table, model=model, custom_ops="extensions")

    assert isinstance(missing, NotFoundError)
    assert "nowhere.so: no such library" in missing.message
    assert isinstance(broken, ModelError)
    assert "--custom-ops wants a library" in broken.hint
    assert "onnxruntime-extensions is not installed" in package.message


def test_the_library_is_part_of_the_model(tmp_path: Path) -> None:
    """Another library is another session and another plan; where it lies does not matter."""
    model = str(models.wide(tmp_path))
    (tmp_path / "a.so").write_bytes(b"a")
    (tmp_path / "b.so").write_bytes(b"b")
    shutil.copy(tmp_path / "a.so", tmp_path / "c.so")

    plain, a, b, c = (
        modelfile.identify(model, custom_ops=str(tmp_path / f"{name}.so") if name else None)
        for name in ("", *"abc")
    )

    assert a.key == c.key
    assert len({plain.key, a.key, b.key}) == 3


def test_no_operator_may_fall_back_to_the_cpu(tmp_path: Path) -> None:
    """A session for another device tells onnxruntime that no operator may run on the CPU instead."""
    spec = modelfile.identify(str(models.wide(tmp_path)), device="cuda")
    key = "session.disable_cpu_ep_fallback"

    assert model_module._options(spec).get_session_config_entry(key) == "1"


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """--device cuda without CUDA is exit 70, with what there is: never the CPU in silence."""
    error = refused(tmp_path, lists([[1.0, 2.0]]), model=models.echo(tmp_path, "float32", 2), device="cuda")

    assert error.exit_code == 70
    assert "no CUDAExecutionProvider, only " in error.message
    with pytest.raises(ModelError, match="--device cuda"):
        bs.Model(tmp_path / "echo.onnx", device="cuda")


# -- digits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@given(values=hnp.arrays(st.sampled_from(["int64", "uint64", "int32", "uint16"]), st.integers(1, 20)))
@settings(max_examples=60, deadline=None)
def test_integers_that_lose_digits_are_counted(dtype: str, values: Any) -> None:
    """The count is that of the integers whose float is another number; those that overflow are rejects."""
    feed = Feed(input="x", dtype=dtype, columns=("x",), nulls=(NullPolicy(),), rank=1)
    batch = pa.RecordBatch.from_arrays([array_of(values)], names=["x"])

    rows, misfits = encode(batch, Binding(feeds=(feed,)), ())

    with np.errstate(over="ignore"):
        floats = values.astype(dtype)
    bad = {misfit.row for misfit in misfits}
    changed = [i for i, v in enumerate(values) if i not in bad and int(floats[i]) != int(v)]
    assert rows.rounded["x"] == len(changed)


def test_the_run_tells_how_many_integers_lost_digits(tmp_path: Path) -> None:
    """Integers past 2^24 that a float32 input rounds are counted, in lists and columns, nulls apart."""
    table = lists([[2**24 + 1, 5], [2**24 + 2, None], [2**25 + 1, 2**24 + 1]])
    pq.write_table(table, tmp_path / "in.parquet")
    model = models.echo(tmp_path, "float32", 2)

    done = bs.score(tmp_path / "in.parquet", tmp_path / "out.parquet", model=model, on_null="nan")
    planned = bs.plan(tmp_path / "in.parquet", model=model, on_null="nan").plan

    assert done.receipt.rounded == {"X": 3}
    assert done.facts()["rounded"] == {"X": 3}
    assert "int64 past 16,777,216 loses digits" in preview.plan_facts(planned)["in  X"]
    assert "  X: 3 integers rounded to the model's float" in summary_lines(done)


@pytest.mark.parametrize(
    ("kind", "target", "says"),
    [
        (pa.float64(), "float32", "; float64 is rounded to float32"),
        (pa.int64(), "float64", "; int64 past 9,007,199,254,740,992 loses digits"),
        (pa.int16(), "float32", "X (int16, null"),
        (pa.int64(), "int32", "; int64 that is no int32 is a reject"),
        (pa.decimal128(25, 2), "float32", "float64 is rounded to float32"),
        (pa.string(), "float32", "X (string, null"),
    ],
    ids=str,
)  # fmt: skip
def test_the_plan_names_casts_that_can_lose_digits(
    kind: pa.DataType, target: str, says: str, tmp_path: Path
) -> None:
    """`plan` says per column what the cast to the input's type may change."""
    pq.write_table(lists([1]).cast(pa.schema([("X", kind)])), tmp_path / "in.parquet")

    planned = bs.plan(tmp_path / "in.parquet", model=models.echo(tmp_path, target, 1)).plan

    assert says in preview.plan_facts(planned)["in  X"]


def test_onnxruntime_tells_nobody_what_it_is_used_for(tmp_path: Path) -> None:
    """A job leaves nothing in the home of its user: the runtime's own telemetry is off."""
    (tmp_path / "home").mkdir()
    model = doubler(tmp_path / "model.onnx")
    (tmp_path / "in.csv").write_text("x\n1\n2\n")

    done = spawn(
        "score", tmp_path / "in.csv", tmp_path / "out.parquet", "-m", model,
        environment={"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": "", "ORT_DISABLE_TELEMETRY": ""},
        before="import os; os.environ.pop('ORT_DISABLE_TELEMETRY'); os.environ.pop('XDG_CACHE_HOME')",
    )  # fmt: skip

    assert done.code == 0, done.err
    assert list((tmp_path / "home").rglob("*")) == []
