"""A scored file against its labels: every format, every kind of column, every row accounted for."""

import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

import batchserve as bs
from batchserve import evaluation
from batchserve.evaluation import Evaluation
from workbench import FLIGHTS, IRIS, run

ROWS = {"y": [1.0, 2.0, 4.0, 8.0], "p": [1.5, 2.0, 3.0, 8.0], "g": ["a", "a", "b", None]}
Found = Callable[..., Evaluation]


@pytest.fixture
def found(tmp_path: Path) -> Found:
    """Write columns to Parquet and evaluate them."""

    def evaluated(label: Any, prediction: Any, **asked: Any) -> Evaluation:
        columns = [each if isinstance(each, pa.Array) else pa.array(each) for each in (label, prediction)]
        pq.write_table(pa.table(columns, names=["y", "p"]), tmp_path / "scored.parquet")
        return bs.evaluate(tmp_path / "scored.parquet", label="y", prediction="p", **asked)

    return evaluated


def refused(call: Callable[[], Any]) -> bs.BatchserveError:
    with pytest.raises(bs.BatchserveError) as caught:
        call()
    return caught.value


# -- files ------------------------------------------------------------------------------------


def written(table: pa.Table, path: Path) -> Path:
    """Write a table in the format of its suffix."""
    rows = table.to_pylist()
    match path.suffix:
        case ".parquet":
            pq.write_table(table, path, row_group_size=3)
        case ".arrow":
            feather.write_feather(table, str(path))
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case _:
            lines = [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
            path.write_text("\n".join([",".join(table.column_names), *lines, ""]))
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl", ".csv"])
def test_every_format_gives_the_same(suffix: str, tmp_path: Path) -> None:
    """Parquet, Arrow, JSON lines and CSV with the same rows give the same metrics."""
    path = written(pa.table(ROWS), tmp_path / f"scored{suffix}")

    found = bs.evaluate(path, label="y", prediction="p", by="g")

    assert found.metrics["mae"] == 1.5 / 4
    assert [(each["value"], each["rows"]) for each in found.facts()["by"]["g"]] == [
        ("a", 2), (None, 1), ("b", 1),
    ]  # fmt: skip


def test_a_folder_of_parts_is_one_file(tmp_path: Path) -> None:
    """A scored dataset folder gives what the same rows give in one file, to the bit."""
    options: dict[str, Any] = {"label": "arr_delay", "prediction": "predicted_delay", "by": ["origin"]}
    bs.score(FLIGHTS, tmp_path / "one.parquet")
    bs.score(FLIGHTS, tmp_path / "parts", partition_size="50k")

    one, parts = (bs.evaluate(tmp_path / name, **options).facts() for name in ("one.parquet", "parts"))

    assert len(list((tmp_path / "parts").glob("*.parquet"))) > 5
    assert parts["metrics"] == one["metrics"]
    assert [each["mae"] for each in parts["by"]["origin"]] == [each["mae"] for each in one["by"]["origin"]]
    assert parts["errors"] == one["errors"]


def test_blocks_of_any_size_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many rows are read at once changes nothing, to the bit."""
    chance = np.random.default_rng(3)
    table = pa.table({"y": chance.standard_normal(50_000), "p": chance.standard_normal(50_000)})
    pq.write_table(table, tmp_path / "s.parquet", row_group_size=7_000)
    whole = bs.evaluate(tmp_path / "s.parquet", label="y", prediction="p").metrics

    monkeypatch.setattr(evaluation, "_BATCH_ROWS", 1_000)

    assert bs.evaluate(tmp_path / "s.parquet", label="y", prediction="p").metrics == whole


def test_a_record_that_cannot_be_read_is_counted(tmp_path: Path) -> None:
    """A CSV record with too many fields is left out, and told."""
    (tmp_path / "s.csv").write_text("y,p\n1.5,2.5\n1.5,2.5,9\n2.5,2.5\n")

    found = bs.evaluate(tmp_path / "s.csv", label="y", prediction="p")

    assert (found.metrics["rows"], found.left_out) == (2, {"record cannot be read": 1})
    assert found.facts()["rows"] == 3


def test_only_the_columns_asked_for_are_needed(tmp_path: Path) -> None:
    """A damaged page of another column of Parquet is never read."""
    table = pa.table({"y": [1.0, 2.0], "p": [1.0, 2.0], "z": [list(range(99))] * 2})
    pq.write_table(table, tmp_path / "s.parquet")

    assert bs.evaluate(tmp_path / "s.parquet", label="y", prediction="p").metrics["mae"] == 0


# -- rows left out ----------------------------------------------------------------------------


def test_rows_without_a_label_or_a_prediction_are_counted(found: Found) -> None:
    """Nulls, NaN and infinities of either side are left out, each with its reason."""
    labels = [1.0, None, 2.0, float("nan"), 3.0, 4.0, None]
    predictions = [1.0, 1.0, None, 1.0, float("inf"), 4.5, None]

    result = found(labels, predictions)

    assert result.left_out == {
        "label is null": 2, "prediction is null": 1, "label is NaN or infinite": 1,
        "prediction is NaN or infinite": 1,
    }  # fmt: skip
    assert (result.metrics["rows"], result.metrics["mae"], result.facts()["rows"]) == (2, 0.25, 7)
    assert "label is null" in str(result)


def test_a_probability_that_is_null_is_left_out(found: Found) -> None:
    """A null or NaN among the probabilities of a row leaves the row out."""
    chances = pa.array([[0.5, 0.5], [None, 1.0], [float("nan"), 1.0], None], pa.list_(pa.float32(), 2))

    result = found([0, 1, 1, 0], chances)

    assert (result.metrics["rows"], result.left_out) == (
        1, {"prediction is null": 1, "prediction is NaN or infinite": 2},
    )  # fmt: skip


def test_a_file_without_rows_has_no_metrics(found: Found, tmp_path: Path) -> None:
    """No rows, or none with a label, give metrics that are not defined, and a plot all the same."""
    empty = found(pa.nulls(0, pa.float64()), pa.nulls(0, pa.float64()))
    unlabelled = found(pa.nulls(3, pa.bool_()), [0.1, 0.2, 0.3])

    assert (empty.metrics["rows"], empty.metrics["mae"]) == (0, None)
    assert (unlabelled.question.task, unlabelled.metrics["roc_auc"]) == ("binary", None)
    empty.plot(tmp_path / "empty.svg")
    ET.parse(tmp_path / "empty.svg")  # noqa: S314  our own


# -- the task ---------------------------------------------------------------------------------

STRUCT = pa.array([{"a": 0.25, "b": 0.75}, {"a": 0.5, "b": 0.5}])
LIST = pa.array([[0.25, 0.75], [0.5, 0.5]], pa.list_(pa.float32(), 2))
THREE = pa.array([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]], pa.list_(pa.float64(), 3))


@pytest.mark.parametrize(
    ("label", "prediction", "task"),
    [
        ([1.5, 2.0], [1.0, 2.0], "regression"),
        ([5, 7], [1.0, 2.0], "regression"),
        ([1.5, 2.0], [1, 2], "regression"),
        ([Decimal("1.5"), Decimal("2.5")], [1.0, 2.0], "regression"),
        ([True, False], [0.25, 0.75], "binary"),
        (["a", "b"], STRUCT, "binary"),
        ([0, 1], LIST, "binary"),
        ([0.0, 1.0], pa.array([[0.5, 0.5], [0.5, 0.5]]), "binary"),
        ([0, 2], THREE, "multiclass"),
        (["a", "b"], ["a", "a"], "multiclass"),
        ([0, 1], [0, 1], "multiclass"),
        ([True, False], [1, 0], "multiclass"),
        (pa.array(["a", "b"]).dictionary_encode(), pa.array(["b", "a"], pa.large_string()), "multiclass"),
    ],
    ids=str,
)
def test_the_task_is_told_from_the_types(found: Found, label: Any, prediction: Any, task: str) -> None:
    """Numbers against numbers are a regression, two probabilities binary, other classes multiclass."""
    assert found(label, prediction).question.task == task


def test_what_may_be_two_tasks_is_asked(found: Found) -> None:
    """Numbers of 0 and 1 against numbers between are refused until the task is said."""
    rows = ([0, 1, 1], [0.25, 0.75, 0.5])

    error = refused(lambda: found(*rows))

    assert (error.exit_code, error.hint) == (2, "say --task regression or --task binary")
    assert found(*rows, task="binary").metrics["accuracy"] == 1.0
    assert found(*rows, task="regression").metrics["mae"] == 1.0 / 3


def test_the_second_of_two_is_positive(found: Found) -> None:
    """Of two probabilities the second is the positive one; --positive says another."""
    result = found(["b", "a"], STRUCT)
    other = found(["b", "a"], STRUCT, positive="a")

    assert (result.question.positive, result.metrics["positives"]) == ("b", 1)
    assert result.metrics["brier"] == (0.25**2 + 0.5**2) / 2
    assert (other.question.positive, other.metrics["brier"]) == ("a", (0.25**2 + 0.5**2) / 2)
    assert (result.metrics["recall"], other.metrics["recall"]) == (1.0, 1.0)


def test_texts_need_a_positive_class(found: Found) -> None:
    """Scores for texts are refused until somebody says which text is positive."""
    rows = (["late", "early", "late"], [0.9, 0.2, 0.4])

    error = refused(lambda: found(*rows))

    assert (error.exit_code, error.message) == (2, "y is early, late: which of them is positive?")
    assert found(*rows, positive="late").metrics["roc_auc"] == 1.0
    assert found(*rows, positive="late", threshold=0.4).metrics["recall"] == 1.0


def test_classes_name_the_probabilities_of_a_list(found: Found) -> None:
    """A list has no names: its classes are 0, 1, 2, or what --classes says."""
    result = found(["x", "y"], THREE, classes=["y", "x", "z"])

    assert result.metrics["accuracy"] == 1.0
    assert refused(lambda: found(["x", "y"], THREE)).exit_code == 65
    assert refused(lambda: found([0, 1], THREE, classes="a,b")).message == (
        "--classes names 2, and p has 3 probabilities a row"
    )


def test_a_fixed_shape_tensor_is_a_list(found: Found) -> None:
    """Probabilities may be a tensor column, as a model with a deeper output gives."""
    tensor = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (2,)), LIST)

    assert found([1, 0], tensor).metrics["roc_auc"] == 1.0


# -- what makes no sense ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "prediction", "asked", "code", "message"),
    [
        ([dt.date(2026, 1, 1)], [1.0], {"task": "regression"}, 2, "y: no number"),
        (["a"], [1.0], {"task": "regression"}, 2, "y: no number"),
        ([dt.date(2026, 1, 1)], ["a"], {}, 2, "y: of a type that is no class"),
        (["a"], [dt.date(2026, 1, 1)], {}, 2, "p: of a type that is no class"),
        (["a"], ["a"], {"task": "binary"}, 2, "p: neither a score nor two probabilities"),
        (["a"], ["b"], {}, 65, "no prediction is a label: y is a, and p b"),
        ([0, 1, 2], [0.5, 0.5, 0.5], {"task": "binary"}, 65, "y has more than two classes: 0, 1, 2"),
        (["a", "b", "c"], [0.5] * 3, {"positive": "a"}, 65, "y has more than two classes: a, b, c"),
        (["a", "b"], [0.5] * 2, {"positive": "c"}, 65, "y is never c, but a, b"),
        (["a", "b"], ["a", "b"], {"positive": "a"}, 2, "--positive a: the task is multiclass"),
        ([0, 1], LIST, {"positive": "7"}, 2, "--positive 7: the classes are 0, 1"),
        ([0, 3], THREE, {}, 65, "y has the class 3, and p has probabilities for 0, 1, 2"),
        ([0, 1], pa.array([[0.5, 0.5], [1.0]]), {}, 65, "a row has 1 probabilities, others 2"),
        ([1.0], [2.0], {"task": "rank"}, 2, "--task rank: no such task"),
        ([1.0], [2.0], {"bins": 0}, 2, "--bins 0"),
        ([1.0], [2.0], {"threshold": float("nan")}, 2, "--threshold nan"),
        ([1.0], [2.0], {"format": "xml"}, 2, "--format xml: no such format"),
        ([1.0], [2.0], {"plot": "p.png"}, 2, "--plot p.png: is neither .html nor .svg"),
        ([1.0], [2.0], {"plot": "gone/p.svg"}, 73, "no such folder"),
        ([1.0], [2.0], {"by": "z"}, 2, "--by z: no such column"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(
    found: Found, label: Any, prediction: Any, asked: dict[str, Any], code: int, message: str
) -> None:
    """A task that the columns or the classes do not fit is refused, with a hint."""
    error = refused(lambda: found(label, prediction, **asked))

    assert (error.exit_code, bool(error.hint)) == (code, True)
    assert message in error.message


def test_all_missing_columns_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Columns that are not there are told together, with the nearest name."""
    pq.write_table(pa.table(ROWS), tmp_path / "s.parquet")

    done = run(
        capsys, "evaluate", tmp_path / "s.parquet", "--label", "yy", "--prediction", "pp", "--by", "gg"
    )

    assert (done.code, done.out) == (2, "")
    assert all(f"{flag}: no such column" in done.err for flag in ("--label yy", "--prediction pp", "--by gg"))
    assert "did you mean" in done.err


def test_too_many_classes_or_groups_are_refused(found: Found, tmp_path: Path) -> None:
    """A label of 1,001 classes and a column of 101 groups are refused: memory stays flat."""
    many = [str(i) for i in range(1001)]

    assert "more than 1,000 classes" in refused(lambda: found(many, many)).message
    pq.write_table(pa.table({"y": [3.0] * 101, "p": [1.0] * 101, "g": range(101)}), tmp_path / "g.parquet")
    error = refused(lambda: bs.evaluate(tmp_path / "g.parquet", label="y", prediction="p", by="g"))
    assert (error.exit_code, error.message) == (2, "--by g: more than 100 groups")


def test_a_list_is_no_group(tmp_path: Path) -> None:
    """Lists and structs make no groups."""
    pq.write_table(pa.table({"y": [1.0], "p": [1.0], "g": [[1]]}), tmp_path / "g.parquet")

    error = refused(lambda: bs.evaluate(tmp_path / "g.parquet", label="y", prediction="p", by="g"))
    assert (error.exit_code, error.hint) == (2, "name a column of single values")


def test_a_file_that_is_not_there() -> None:
    """A scored file that is not there is exit 66."""
    assert refused(lambda: bs.evaluate("gone.parquet", label="y", prediction="p")).exit_code == 66


# -- groups -----------------------------------------------------------------------------------


def test_groups_are_the_rows_of_each_value(tmp_path: Path) -> None:
    """Each group has the metrics of its rows alone; nulls are a group, and rows left out are counted."""
    chance = np.random.default_rng(5)
    label, score = chance.random(300) < 0.5, chance.random(300)
    group = chance.integers(0, 3, 300)
    table = pa.table({"y": label, "p": score, "g": pa.array(group, mask=group == 2), "h": ["x"] * 300})
    pq.write_table(table, tmp_path / "s.parquet", row_group_size=50)

    facts = bs.evaluate(tmp_path / "s.parquet", label="y", prediction="p", by=["g", "h"]).facts()

    assert {each["value"] for each in facts["by"]["g"]} == {"0", "1", None}
    for each in facts["by"]["g"]:
        mine = group == (2 if each["value"] is None else int(each["value"]))
        pq.write_table(table.filter(pa.array(mine)), tmp_path / "part.parquet")
        part = bs.evaluate(tmp_path / "part.parquet", label="y", prediction="p").metrics
        assert {name: each[name] for name in part} == part
    (whole,) = facts["by"]["h"]
    assert whole["roc_auc"] == facts["metrics"]["roc_auc"]


# -- what is shown ----------------------------------------------------------------------------


def test_json_is_one_object_with_everything(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """--json prints the facts and nothing else."""
    bs.score(IRIS, tmp_path / "iris.parquet")
    arguments = ("evaluate", tmp_path / "iris.parquet", "--label", "species", "--prediction", "probability")

    done = run(capsys, *arguments, "--json")

    facts = json.loads(done.out)
    assert (done.code, done.err, facts["task"], facts["rows"]) == (0, "", "multiclass", 150)
    assert facts["classes"] == ["setosa", "versicolor", "virginica"]
    assert sum(map(sum, facts["confusion"])) == 150
    assert facts["metrics"]["accuracy"] == sum(facts["confusion"][i][i] for i in range(3)) / 150
    assert set(facts["per_class"][0]) == {"class", "rows", "precision", "recall", "f1"}


def test_what_was_found_prints_well(found: Found) -> None:
    """Text and HTML of what was found have the numbers, and what is not ours is escaped."""
    result = found(["<b>", "a"], ["<b>", "a"])

    assert "accuracy" in str(result)
    assert repr(result) == str(result)
    assert "&lt;b&gt;" in result._repr_html_()
    assert "<b>" not in result._repr_html_()


def test_many_classes_and_groups_are_cut_on_the_screen(tmp_path: Path) -> None:
    """More classes or groups than fit are told by their number; JSON has them all."""
    names = [f"c{i:02}" for i in range(30)]
    pq.write_table(pa.table({"y": names, "p": names, "g": names}), tmp_path / "s.parquet")

    found = bs.evaluate(tmp_path / "s.parquet", label="y", prediction="p", by="g")

    assert "30 classes: --json has" in str(found)
    assert "and 10 more with fewer rows" in str(found)
    assert (len(found.facts()["by"]["g"]), len(found.facts()["per_class"])) == (30, 30)


@pytest.mark.parametrize(
    ("label", "prediction", "pictures"),
    [
        ([1.0, 2.0, 4.0], [1.5, 2.5, 3.0], ["calibration", "errors"]),
        ([3.0, 3.0], [3.0, 3.0], ["calibration", "errors"]),
        ([True, False], [0.25, 0.75], ["calibration", "rows by probability"]),
        ([0, 1], THREE, ["calibration", "rows by probability", "label (down)"]),
        (
            [f"class {i} of many" for i in range(12)],
            [f"class {i} of many" for i in range(12)],
            ["label (down)"],
        ),
    ],
    ids=str,
)
def test_a_plot_is_a_picture_of_its_own(
    found: Found, tmp_path: Path, label: Any, prediction: Any, pictures: list[str]
) -> None:
    """An .svg is well-formed and has its pictures; an .html has them too, and loads nothing."""
    result = found(label, prediction)

    result.plot(tmp_path / "p.svg")
    result.plot(str(tmp_path / "p.html"))

    root = ET.parse(tmp_path / "p.svg").getroot()  # noqa: S314  our own
    texts = " ".join(each.text or "" for each in root.iter() if each.tag.endswith("text"))
    assert all(picture in texts for picture in pictures)
    page = (tmp_path / "p.html").read_text()
    assert str(result).splitlines()[1].strip() in page
    assert all(
        word not in page.replace("http://www.w3.org/2000/svg", "") for word in ("http", "src=", "script")
    )
    assert "nan" not in (tmp_path / "p.svg").read_text()


def test_a_plot_is_drawn_by_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """--plot writes the file and leaves no other."""
    pq.write_table(pa.table(ROWS), tmp_path / "s.parquet")

    done = run(
        capsys, "evaluate", tmp_path / "s.parquet", "--label", "y", "--prediction", "p",
        "--plot", tmp_path / "p.html",
    )  # fmt: skip

    assert (done.code, sorted(path.name for path in tmp_path.iterdir())) == (0, ["p.html", "s.parquet"])
    assert "R2" in done.out
