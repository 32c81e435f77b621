"""Bad rows of every class, planted in large files: each is found at its place, all others are scored."""

import json
from pathlib import Path

import planted
from planted import CRASH, LATIN, LONG, SHORT, VALUE_FAULTS


def test_a_thousand_bad_rows_of_a_csv_are_found_each_at_its_place(tmp_path: Path) -> None:
    """1,001 of 100,000 rows are bad in eleven ways: all are told, the rest is scored, and not twice."""
    assert planted.check_csv(tmp_path, seed=1) == []


def test_bad_lines_of_json_are_found_each_at_its_place(tmp_path: Path) -> None:
    """120 of 10,000 lines are bad in twelve ways: no object, two in a line, a number too large."""
    assert planted.check_jsonl(tmp_path, seed=2) == []


def test_bad_rows_of_parquet_are_found_by_their_number(tmp_path: Path) -> None:
    """60 of 10,000 rows are bad in six ways, in five row groups."""
    assert planted.check_parquet(tmp_path, seed=3) == []


def test_rows_that_kill_the_process_are_found_among_others(tmp_path: Path) -> None:
    """Three rows on which onnxruntime dies of SIGFPE are rejects like others; the command ends as ever."""
    assert planted.check_crash(tmp_path, seed=4) == []

    lines = (tmp_path / "out.rejects.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["class"] == CRASH.kind for line in lines) == 3


def test_every_class_of_reject_is_planted() -> None:
    """The files above hold what a row can be rejected for, all of it."""
    kinds = {fault.kind for fault in (*VALUE_FAULTS, SHORT, LONG, LATIN, CRASH)}

    assert kinds == {"PARSE", "CAST", "MISSING", "RANGE", "MODEL", "NONFINITE", "CRASH"}


def test_a_reject_elsewhere_and_a_mode_that_others_can_read_are_told(tmp_path: Path) -> None:
    """What compares the rejects with the planted rows finds a wrong place, a lost one and a wrong mode."""
    table = planted.plan(100, [SHORT], each=2, crashes=0, seed=5)
    made = planted.csv(tmp_path / "rows.csv", table)
    lines = [json.dumps(reject) for reject in made.rejects]
    path = tmp_path / "out.rejects.jsonl"
    path.touch(mode=0o600)
    path.write_text(f"{lines[0]}\n{lines[1]}\n")
    assert planted.faults_of(made, path) == []

    path.write_text(lines[0].replace('"line": ', '"line": 1') + "\n")
    path.chmod(0o640)

    wrong = planted.faults_of(made, path)
    assert len(wrong) == 3
    assert wrong[0] == "1 rejects of 2"
    assert wrong[2] == "others may read the rejects"
