"""`retry` of records of any dialect, layout and folder: they come out as if they had been right."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

import batchserve as bs
from workbench import run


class Corrector:
    """Scores inputs with rejects, corrects these in their file, and scores them again."""

    def __init__(self, home: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.model, self.capsys = home, model, capsys

    def retried(self, inputs: Any, corrections: dict[str, str], **options: Any) -> pa.Table:
        """Return the rows of the corrected records; their schema is that of the others."""
        bs.score(inputs, self.home / "out.parquet", model=self.model, max_errors=99, workers=1, **options)
        rejects = self.home / "out.rejects.jsonl"
        lines = [json.loads(line) for line in rejects.read_text().splitlines()]
        for line in lines:
            for old, new in corrections.items():
                line["raw"] = line["raw"].replace(old, new)
        rejects.write_text("".join(json.dumps(line) + "\n" for line in lines))
        done = run(self.capsys, "retry", rejects, self.home / "again.parquet")
        assert done.code == 0, done.err
        assert pq.read_schema(self.home / "again.parquet").equals(pq.read_schema(self.home / "out.parquet"))
        return pq.read_table(self.home / "again.parquet").drop_columns("y")


@pytest.fixture
def corrector(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> Corrector:
    """Correct rejects in the test's folder."""
    return Corrector(tmp_path, model, capsys)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_records_keep_the_dialect_of_their_file(delimiter: str, corrector: Corrector) -> None:
    """Whatever stands between fields, corrected records are read as the file was."""
    rows = ["x,s", "1,p", 'bad,"q,;\t| r"', "3,s", "4,t"]
    text = "\n".join(row.replace(",", delimiter, 1) for row in rows)
    (corrector.home / "a.csv").write_text(text + "\n")

    found = corrector.retried(corrector.home / "a.csv", {"bad": "7"})

    assert found.to_pylist() == [{"x": 7, "s": "q,;\t| r"}]


def test_records_keep_their_folder_source_and_layout(corrector: Corrector) -> None:
    """What a record has by its path, its number and the order of its columns it has when it is corrected."""
    for day, text in (("1", "x,s\n1,p\nbad,q\n"), ("2", "s,x,z\nr,bad,1\nt,4,2\n")):
        folder = corrector.home / "in" / f"day={day}"
        folder.mkdir(parents=True)
        (folder / "a.csv").write_text(text)

    found = corrector.retried(corrector.home / "in", {"bad": "7"}, add_source=True, schema_drift="widen")

    paths = [str(corrector.home / "in" / f"day={day}" / "a.csv") for day in (1, 2)]
    assert found.to_pylist() == [
        {"x": 7, "s": "q", "z": None, "day": 1, "source_file": paths[0], "source_row": 2},
        {"x": 7, "s": "r", "z": 1, "day": 2, "source_file": paths[1], "source_row": 1},
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "arrow"])
def test_objects_keep_their_folder_and_source(suffix: str, corrector: Corrector) -> None:
    """JSON lines get the columns that their files do not hold; those of other formats have them."""
    path = corrector.home / "in" / "city=New%20York" / f"a.{suffix}"
    path.parent.mkdir(parents=True)
    table = pa.table({"x": [1.5, None], "s": ["p", "q"]})
    if suffix == "jsonl":
        path.write_text('{"x": 1.5, "s": "p"}\n{"x": null, "s": "q"}\n')
    elif suffix == "arrow":
        feather.write_feather(table, str(path))
    else:
        pq.write_table(table, path)

    found = corrector.retried(corrector.home / "in", {"null": "7.5"}, add_source=True)

    assert found.to_pylist() == [
        {"x": 7.5, "s": "q", "city": "New York", "source_file": str(path), "source_row": 2}
    ]


def test_source_columns_stay_where_nothing_else_is_kept(corrector: Corrector) -> None:
    """What was kept is kept again, and nothing else."""
    (corrector.home / "a.csv").write_text("x,s\n1,p\nbad,q\n")

    found = corrector.retried(corrector.home / "a.csv", {"bad": "7"}, add_source=True, keep="none")

    assert found.to_pylist() == [{"source_file": str(corrector.home / "a.csv"), "source_row": 2}]


def test_what_is_no_record_in_its_dialect_is_none_in_ours(corrector: Corrector) -> None:
    """A record that was not corrected stays a reject, even if it would be one with commas."""
    (corrector.home / "a.csv").write_text("x;s\n1;p\n2,5\n3;q\n4;r\n")
    output = corrector.home / "out.parquet"
    bs.score(corrector.home / "a.csv", output, model=corrector.model, max_errors=9, workers=1)

    done = run(corrector.capsys, "retry", corrector.home / "out.rejects.jsonl", corrector.home / "n.parquet")

    assert done.code == 65
    assert "PARSE" in done.err
