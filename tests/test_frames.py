"""`Model.predict` on the frames a caller holds, and the lazy frame of scored rows."""

from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchserve as bs
import models
import oracle

ROWS = 1_500
WIDE = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Return rows with columns that not every model reads and an index that is no range."""
    random = np.random.default_rng(3)
    made = pd.DataFrame(random.standard_normal((ROWS, 4)), columns=list(WIDE))
    made["kind"] = random.choice([*models.KINDS, "unknown"], ROWS)
    return made.set_index(pd.Index(random.permutation(ROWS) * 3, name="key"))


@pytest.fixture(scope="module")
def table(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False)


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.named(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.wide(tmp_path_factory.mktemp("models"))


def test_pandas_in_pandas_out(frame: pd.DataFrame, named: Path) -> None:
    """A pandas frame gives the oracle's predictions as a pandas frame with the same index."""
    predicted = bs.Model(named).predict(frame)

    assert type(predicted) is pd.DataFrame
    assert list(predicted.columns) == ["score"]
    pd.testing.assert_index_equal(predicted.index, frame.index)
    assert oracle.same(predicted["score"], oracle.predict(named, frame)["score"])


def test_polars_in_polars_out(frame: pd.DataFrame, table: pa.Table, wide: Path) -> None:
    """A Polars frame gives a Polars frame; a row of three scores is an array of three."""
    rows = pl.from_arrow(table)
    assert isinstance(rows, pl.DataFrame)

    predicted = bs.Model(wide, features=WIDE).predict(rows)

    expected = oracle.predict(wide, frame, WIDE)
    assert type(predicted) is pl.DataFrame
    assert predicted.columns == ["total", "logits"]
    assert predicted["total"].to_numpy().tobytes() == expected["total"].tobytes()
    assert predicted["logits"].to_numpy().tobytes() == expected["logits"].tobytes()


def test_a_table_gives_a_table(frame: pd.DataFrame, table: pa.Table, named: Path) -> None:
    """An Arrow table of several chunks gives one Arrow table in the same order."""
    chunked = pa.concat_tables([table.slice(0, 700), table.slice(700, 1), table.slice(701)])

    predicted = bs.Model(named).predict(chunked)

    assert type(predicted) is pa.Table
    expected = oracle.predict(named, frame)["score"]
    assert predicted["score"].to_numpy().tobytes() == expected.tobytes()


def test_a_record_batch_gives_a_record_batch(frame: pd.DataFrame, table: pa.Table, named: Path) -> None:
    """An Arrow record batch gives a record batch of as many rows, and an empty one an empty one."""
    batch = table.to_batches()[0]
    model = bs.Model(named)

    predicted, nothing = model.predict(batch), model.predict(batch.slice(0, 0))

    assert type(predicted) is type(nothing) is pa.RecordBatch
    expected = oracle.predict(named, frame)["score"]
    assert predicted["score"].to_numpy().tobytes() == expected.tobytes()
    assert nothing.num_rows == 0
    assert nothing.schema == predicted.schema


def test_dask_in_dask_out(frame: pd.DataFrame, named: Path) -> None:
    """A Dask frame gives a lazy Dask frame of as many partitions, with the index and the oracle's bits."""
    lazy = dd.from_pandas(frame, npartitions=4, sort=False)

    predicted = bs.Model(named).predict(lazy)

    assert type(predicted) is type(lazy)
    assert predicted.npartitions == 4
    assert predicted.dtypes.to_dict() == {"score": np.dtype("float32")}
    computed = predicted.compute(scheduler="threads")
    pd.testing.assert_index_equal(computed.index, frame.index)
    assert oracle.same(computed["score"], oracle.predict(named, frame)["score"])


def test_an_empty_frame_gives_no_rows(frame: pd.DataFrame, named: Path) -> None:
    """No rows in is no rows out, with the columns and types that rows would have."""
    model = bs.Model(named)

    nothing = model.predict(frame.iloc[:0])

    assert len(nothing) == 0
    assert nothing.dtypes.to_dict() == model.predict(frame).dtypes.to_dict()


def test_one_row_scores_as_it_does_among_many(frame: pd.DataFrame, wide: Path) -> None:
    """A row scored alone has the bits it has among 1,500: the shape of every run is the same."""
    model = bs.Model(wide, features=WIDE)

    alone = pd.concat([model.predict(frame.iloc[[i]]) for i in (0, 700, 1_499)])

    together = model.predict(frame).iloc[[0, 700, 1_499]]
    assert oracle.same(alone["total"], together["total"].to_numpy())
    assert oracle.same(alone["logits"], np.stack(together["logits"].to_list()))


def test_a_missing_column_is_named_with_the_nearest(frame: pd.DataFrame, named: Path) -> None:
    """A model input without a column is an error that names both and asks for the likeliest."""
    renamed = frame.rename(columns={"kind": "kin"})[["a", "b", "kin"]]

    with pytest.raises(bs.BatchserveError, match="no column kind") as caught:
        bs.Model(named).predict(renamed)

    assert caught.value.exit_code == 70
    assert "did you mean kin?" in caught.value.hint


def test_every_missing_column_is_told_at_once(frame: pd.DataFrame, named: Path) -> None:
    """Two missing columns are two lines of one error."""
    with pytest.raises(bs.BatchserveError, match="2 problems") as caught:
        bs.Model(named).predict(frame[["a"]])

    assert "no column b" in caught.value.message
    assert "no column kind" in caught.value.message


def test_map_names_the_columns(frame: pd.DataFrame, named: Path) -> None:
    """`map` fills a model input from a column of another name, with the same result."""
    renamed = frame.rename(columns={"kind": "Colour", "a": "b", "b": "a"})

    predicted = bs.Model(named, map={"kind": "Colour", "a": "b", "b": "a"}).predict(renamed)

    assert oracle.same(predicted["score"], oracle.predict(named, frame)["score"])


def test_a_prefix_renames_the_predictions(frame: pd.DataFrame, named: Path) -> None:
    """`prefix` stands before the name of every prediction column."""
    assert list(bs.Model(named, prefix="model_").predict(frame).columns) == ["model_score"]


def test_a_column_that_is_not_read_may_hold_anything(frame: pd.DataFrame, named: Path) -> None:
    """Python objects in a column that the model does not read are no concern of the prediction."""
    odd = frame.assign(unread=pd.Series([object()] * ROWS, index=frame.index, dtype=object))

    predicted = bs.Model(named).predict(odd)

    assert oracle.same(predicted["score"], oracle.predict(named, frame)["score"])


def test_what_is_no_frame_is_refused(named: Path) -> None:
    """A list is no frame: the error says which kinds are."""
    with pytest.raises(bs.BatchserveError, match="list: not a frame") as caught:
        bs.Model(named).predict([[1.0, 2.0]])

    assert "pandas, Polars, Arrow or Dask" in caught.value.hint


def test_a_text_for_a_number_is_refused(frame: pd.DataFrame, named: Path) -> None:
    """A column of words where the model wants numbers is an error before anything is scored."""
    with pytest.raises(bs.BatchserveError, match="column a holds text"):
        bs.Model(named).predict(frame.assign(a="word"))


def nulled(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with a null number in row 1 and a null text in row 2."""
    holes = frame[["a", "b", "kind"]].head(10).copy()
    holes.iloc[1, 0] = None
    holes.iloc[2, 2] = None
    return holes


def test_a_null_is_refused_by_default(frame: pd.DataFrame, named: Path) -> None:
    """Rows with nulls in model columns are counted and named, not scored in silence."""
    with pytest.raises(bs.BatchserveError, match="2 of 10 rows") as caught:
        bs.Model(named).predict(nulled(frame))

    assert caught.value.exit_code == 65
    assert "row 1 a" in caught.value.message
    assert "row 2 kind" in caught.value.message


def test_a_null_becomes_what_the_caller_says(frame: pd.DataFrame, named: Path) -> None:
    """`on_null` turns a null number into NaN and a null text into the text given."""
    filled = nulled(frame).fillna({"kind": "blue"})

    predicted = bs.Model(named, on_null=["a:nan", "kind:fill=blue"]).predict(nulled(frame))

    assert np.flatnonzero(predicted["score"].isna()).tolist() == [1]
    assert oracle.same(predicted["score"], oracle.predict(named, filled)["score"])


def test_on_null_of_a_column_that_is_not_read_is_refused(frame: pd.DataFrame, named: Path) -> None:
    """A rule for a column that the model does not read is told, with the likeliest meant."""
    with pytest.raises(bs.BatchserveError, match="reads no column kinds") as caught:
        bs.Model(named, on_null="kinds:fill=x").predict(frame)

    assert "did you mean kind?" in caught.value.hint


# -- scored -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, table: pa.Table) -> Path:
    """Return the rows as CSV with quoted lines, so that partitions must be guessed."""
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    frame = table.to_pandas().assign(note='two\nlines, "so"', count=range(ROWS))
    frame.loc[frame.index % 7 == 0, "count"] = None
    frame.astype({"count": "Int64"}).to_csv(path, index=False)
    return path


def test_scored_is_lazy_and_equals_the_scored_file(file: Path, named: Path, tmp_path: Path) -> None:
    """`scored` gives a Dask frame of as many partitions as the job, with the rows and types of its file."""
    options: Any = {"model": named, "partition_size": 20_000}
    report = bs.score(file, tmp_path / "out.parquet", **options)

    frame = bs.scored(file, **options)

    assert type(frame).__module__.startswith("dask.dataframe")
    assert frame.npartitions == report.partitions > 5
    whole = pq.read_table(tmp_path / "out.parquet").to_pandas(types_mapper=pd.ArrowDtype)
    assert frame.dtypes.to_dict() == whole.dtypes.to_dict()
    computed = frame.compute(scheduler="threads").reset_index(drop=True)
    pd.testing.assert_frame_equal(computed, whole, check_exact=True)


def test_scored_writes_nothing_and_reads_only_what_is_asked(file: Path, named: Path) -> None:
    """Looking at one partition of `scored` gives its rows; nothing appears beside the input."""
    before = sorted(file.parent.iterdir())

    first = bs.scored(file, model=named, partition_size=20_000).partitions[0].compute(scheduler="threads")

    assert 0 < len(first) < ROWS
    assert first["count"].dtype == pd.ArrowDtype(pa.int64())
    assert sorted(file.parent.iterdir()) == before


def test_scored_can_be_chained(file: Path, named: Path) -> None:
    """A filter and a sum on the lazy frame give what they give on the oracle's predictions."""
    frame = bs.scored(file, model=named, partition_size=20_000)

    high = int((frame["score"] > 0).sum().compute(scheduler="threads"))

    rows = oracle.read(file, texts=("kind", "note"))
    assert high == int((oracle.predict(named, rows)["score"] > 0).sum())
