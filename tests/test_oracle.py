"""Every format, model, split and number of workers gives the oracle's rows, bit for bit."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import LocalCluster
from pyarrow import feather

import batchserve as bs
import models
import oracle
from batchserve.inputs import cutting, files, packed
from batchserve.inputs.dialect import COMMON
from conftest import Command, digest
from workbench import PACK

ROWS = 3_000
TEXTS = ("kind", "note")
WIDE = ("a", "b", "c", "d")
FORMATS = ("csv", "csv.gz", "csv.bz2", "jsonl", "jsonl.gz", "jsonl.xz", "parquet", "arrow")
NOTES = ("plain", "NA", "", "two\nlines", 'says "so"', "a,b", " \u00e9\u2713 ", "null", "end\r\n", "x" * 40)
GROUPS = 10
FILES = 5


@dataclass(frozen=True)
class Case:
    """A model and how its inputs are filled."""

    path: Path
    features: tuple[str, ...] = ()
    on_null: tuple[str, ...] = ("nan",)

    @property
    def options(self) -> dict[str, Any]:
        """Return the options of `score` that fill the model's inputs."""
        return {"model": self.path, "features": self.features, "on_null": self.on_null}

    def expected(self, frame: pd.DataFrame) -> dict[str, Any]:
        """Return the oracle's predictions."""
        return oracle.predict(self.path, frame, self.features)


def rows() -> pd.DataFrame:
    """Return numbers with every kind of trouble that is no fault, and texts that look like nulls."""
    random = np.random.default_rng(7)
    floats = {name: random.standard_normal(ROWS) for name in "abcd"}
    frame = pd.DataFrame(floats).convert_dtypes()
    frame["i"] = pd.Series(random.integers(-(2**62), 2**62, ROWS), dtype="Int64")
    frame["y"] = random.standard_normal(ROWS) * 1e300
    frame["kind"] = pd.Series(random.choice([*models.KINDS, "unknown"], ROWS), dtype="string")
    frame["note"] = pd.Series(random.choice(NOTES, ROWS), dtype="string").replace("", pd.NA)
    frame["count"] = pd.Series(np.arange(ROWS), dtype="Int64").mask(random.random(ROWS) < 0.1)
    frame["a"] = frame["a"].mask(random.random(ROWS) < 0.1)
    return frame


def write(frame: pd.DataFrame, folder: Path, form: str) -> list[Path]:
    """Write a frame in one format; a format that cannot be split becomes several files."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    if form == "parquet":
        path = folder / "rows.parquet"
        pq.write_table(table, path, row_group_size=ROWS // GROUPS)
        return [path]
    if form == "arrow":
        path = folder / "rows.arrow"
        feather.write_feather(table, str(path), chunksize=ROWS // GROUPS)
        return [path]
    pack = PACK.get(Path(form).suffix)
    if pack is None:
        path = folder / f"rows.{form}"
        path.write_bytes(text(frame, form))
        return [path]
    paths = [folder / f"rows{i}.{form}" for i in range(FILES)]
    size = len(frame) // FILES
    for i, path in enumerate(paths):
        path.write_bytes(pack(text(frame.iloc[i * size : (i + 1) * size], form)))
    return paths


def text(frame: pd.DataFrame, form: str) -> bytes:
    if form.startswith("jsonl"):
        records = [
            {name: None if pd.isna(value) else value for name, value in row.items()}
            for row in frame.astype(object).to_dict("records")
        ]
        return "".join(json.dumps(record, default=int) + "\n" for record in records).encode()
    numbers = frame.drop(columns="note").to_csv(None, index=False, na_rep="NA").splitlines()
    notes = ["note", *('"' + note.replace('"', '""') + '"' for note in frame["note"].fillna(""))]
    return "".join(f"{a},{b}\r\n" for a, b in zip(numbers, notes, strict=True)).encode()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("inputs")
    return {form: write(rows(), folder, form) for form in FORMATS}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("models")
    iris = Path(__file__).parents[1] / "examples/iris/model.onnx"
    return {
        "named": Case(models.named(folder)),
        "wide": Case(models.wide(folder), WIDE),
        "integers": Case(models.integers(folder), on_null=("y:nan",)),
        "tensor": Case(models.tensor(folder), WIDE),
        "texts": Case(models.texts(folder)),
        "fixed": Case(models.fixed(), ("b", "c")),
        "zipmap": Case(iris, WIDE),
    }


MODELS = ("named", "wide", "integers", "tensor", "texts", "fixed", "zipmap")


def _held_bytes(path: Path) -> int:
    """Return the size of a file, or of what a packed one holds."""
    size = path.stat().st_size
    codec = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz"}.get(path.suffix)
    return packed.promised_bytes(str(path), codec, size) if codec else size  # type: ignore[arg-type]  # a text


def partition_size(paths: Sequence[Path], partitions: int) -> int:
    """Return the size that cuts 5 equal files, or 10 equal row groups, or one text, into so many."""
    if paths[0].suffix == ".parquet":
        _, total = cutting.extent(files.resolve([str(paths[0])])[0], COMMON)
        return total // partitions + total // 50
    total = sum(_held_bytes(path) for path in paths)
    return total // partitions + total // (9 if len(paths) > 1 else 1_000)


def assert_equal(output: Path, case: Case, frame: pd.DataFrame) -> None:
    """Compare an output, or a dataset, with the oracle: columns, order, values, bits."""
    got = pd.read_parquet(output, dtype_backend="numpy_nullable")
    expected = case.expected(frame)
    assert list(got.columns) == [*frame.columns, *expected]
    pd.testing.assert_frame_equal(got[list(frame.columns)], frame, check_exact=True)
    plain = pd.read_parquet(output, columns=list(expected))
    for name, values in expected.items():
        assert oracle.same(plain[name], values), name


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", FORMATS)
def test_every_split_and_width_equals_the_oracle(
    form: str, name: str, inputs: dict[str, list[Path]], cases: dict[str, Case], tmp_path: Path
) -> None:
    """1, 2 and 5 partitions give the oracle's rows and bits; 1 and 2 workers give the same file."""
    paths, case = inputs[form], cases[name]
    frame = oracle.read(*paths, texts=TEXTS)
    for partitions in (1, 2, 5):
        output = tmp_path / f"{partitions}.parquet"
        size = partition_size(paths, partitions)

        report = bs.score(paths, output, **case.options, partition_size=size, workers=1)

        assert paths[0].suffix in PACK or report.partitions == partitions  # what is packed is estimated
        assert report.rows == ROWS
        assert_equal(output, case, frame)

    size = partition_size(paths, 5)
    bs.score(paths, tmp_path / "wide.parquet", **case.options, partition_size=size, workers=2)
    assert digest(tmp_path / "wide.parquet") == digest(tmp_path / "5.parquet")


@pytest.mark.parametrize(("form", "name"), [("csv", "zipmap"), ("parquet", "named"), ("jsonl.gz", "tensor")])
def test_a_cluster_of_processes_gives_the_bytes_of_threads(
    form: str,
    name: str,
    inputs: dict[str, list[Path]],
    cases: dict[str, Case],
    tmp_path: Path,
    process_cluster: LocalCluster,
) -> None:
    """Five partitions on two worker processes equal the oracle and the bytes that threads give."""
    paths, case = inputs[form], cases[name]
    threads, processes = tmp_path / "threads.parquet", tmp_path / "processes.parquet"
    size = partition_size(paths, 5)

    bs.score(paths, threads, **case.options, partition_size=size)
    report = bs.score(paths, processes, **case.options, partition_size=size, cluster=process_cluster)

    assert report.workers == 2
    assert paths[0].suffix in PACK or report.partitions == 5
    assert_equal(processes, case, oracle.read(*paths, texts=TEXTS))
    assert digest(processes) == digest(threads)


@pytest.mark.parametrize("form", FORMATS)
def test_a_dataset_folder_holds_the_same_rows(
    form: str, inputs: dict[str, list[Path]], cases: dict[str, Case], tmp_path: Path
) -> None:
    """An output without a suffix is a folder of one part per partition with the oracle's rows in order."""
    paths, case = inputs[form], cases["wide"]

    for workers in (1, 2):
        size = partition_size(paths, 5)
        bs.score(paths, tmp_path / f"out{workers}", **case.options, partition_size=size, workers=workers)

    parts = sorted(path.name for path in (tmp_path / "out1").glob("*.parquet"))
    assert parts == [f"part-{i:06d}.parquet" for i in range(len(parts) if paths[0].suffix in PACK else 5)]
    assert_equal(tmp_path / "out1", case, oracle.read(*paths, texts=TEXTS))
    assert digest(tmp_path / "out1") == digest(tmp_path / "out2")


def test_other_batch_sizes_equal_the_oracle_at_that_size(
    inputs: dict[str, list[Path]], cases: dict[str, Case], tmp_path: Path
) -> None:
    """Batches of 64 rows and of 4,096, more than there are, give what the oracle gives at that size."""
    paths, case = inputs["parquet"], cases["wide"]
    frame = oracle.read(*paths)

    for size in (64, 4096):
        bs.score(paths, tmp_path / f"{size}.parquet", **case.options, batch_rows=size)

        got = pd.read_parquet(tmp_path / f"{size}.parquet")
        for name, values in oracle.predict(case.path, frame, WIDE, batch_rows=size).items():
            assert oracle.same(got[name], values), (size, name)


def test_predictions_are_never_null(
    inputs: dict[str, list[Path]], cases: dict[str, Case], tmp_path: Path
) -> None:
    """A model that answers NaN gives NaN in the output, which is a number and no null."""
    bs.score(inputs["csv"], tmp_path / "out.parquet", **cases["wide"].options)

    table = pq.read_table(tmp_path / "out.parquet")
    assert np.isnan(table["total"].to_numpy()).any()
    assert table["total"].null_count == table["logits"].null_count == 0
    assert table["a"].null_count > 0


HEADER = "a,b,c,d,i,y,kind\n"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("output", ["out.parquet", "out"])
def test_a_csv_with_only_a_header_gives_an_empty_output(
    name: str, output: str, cases: dict[str, Case], tmp_path: Path
) -> None:
    """No rows in is no rows out: the output has the prediction columns that one row would give."""
    case = cases[name]
    options: Any = {"model": case.path, "features": case.features}
    (tmp_path / "none.csv").write_text(HEADER)
    (tmp_path / "one.csv").write_text(HEADER + "1.5,2.5,3.5,4.5,5,6.5,red\n")

    report = bs.score(tmp_path / "none.csv", tmp_path / output, **options)
    bs.score(tmp_path / "one.csv", tmp_path / "one.parquet", **options)

    none, one = pq.read_table(tmp_path / output), pq.read_table(tmp_path / "one.parquet")
    assert report.rows == none.num_rows == 0
    assert none.column_names == one.column_names
    assert none.schema.types[7:] == one.schema.types[7:]


def test_the_command_takes_a_csv_with_only_a_header(
    cases: dict[str, Case], tmp_path: Path, command: Command
) -> None:
    """A CSV without rows is no error of the command: exit 0 and a Parquet file that all can read."""
    (tmp_path / "none.csv").write_text(HEADER)

    done = command("score", "none.csv", "out.parquet", "--model", cases["named"].path)

    assert done.returncode == 0, done.stderr
    assert list(pd.read_parquet(tmp_path / "out.parquet").columns) == [*HEADER.strip().split(","), "score"]


@pytest.mark.parametrize("name", ["mean_mixer", "quantised_mixer"])
def test_a_model_that_mixes_rows_is_refused_by_name(
    name: str, inputs: dict[str, list[Path]], tmp_path: Path
) -> None:
    """A model whose scores depend on the other rows of a batch is an error that names its operator."""
    model = getattr(models, name)(tmp_path)
    operator = {"mean_mixer": "ReduceMean", "quantised_mixer": "DynamicQuantizeLinear"}[name]

    with pytest.raises(bs.BatchserveError, match=operator) as caught:
        bs.score(inputs["csv"], tmp_path / "out.parquet", model=model, features=("b", "c", "d", "y"))

    assert caught.value.exit_code == 70
    assert not (tmp_path / "out.parquet").exists()
