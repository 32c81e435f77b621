"""Files with rows that cannot be scored, planted among good ones, and the exact place of each.

The model fails in every way that there is: `x` may be no number, missing or too large for float32;
`i` looks a weight up and may be out of range; a score over a zero is not finite; and `n` over `d`,
both int64, kills onnxruntime's process where the result does not fit.
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import helper, numpy_helper

import batchserve as bs
import oracle
from batchserve.errors import DataError
from batchserve.events import Event, PartitionScored

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
LEAST = -(2**63)
WEIGHTS = np.random.default_rng(5).standard_normal(8).astype(np.float32)
COLUMNS = ("id", "x", "i", "n", "d", "note")


def model(path: Path) -> Path:
    """Write the model: inputs x, i, n, d [N, 1]; outputs `score` (float) and `share` (int64)."""
    nodes = [
        helper.make_node("Gather", ["weights", "i"], ["weight"], axis=0),
        helper.make_node("Div", ["weight", "x"], ["score"]),
        helper.make_node("Div", ["n", "d"], ["share"]),
    ]
    kinds = {"x": FLOAT, "i": INT64, "n": INT64, "d": INT64}
    graph = helper.make_graph(
        nodes, "faults",
        [helper.make_tensor_value_info(name, kind, [None, 1]) for name, kind in kinds.items()],
        [helper.make_tensor_value_info("score", FLOAT, [None, 1]),
         helper.make_tensor_value_info("share", INT64, [None, 1])],
        [numpy_helper.from_array(WEIGHTS, "weights")],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(made.SerializeToString())
    return path


# -- rows -------------------------------------------------------------------------------------

Row = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """One way to spoil a row: the class and the column that it is told by."""

    kind: str
    column: str
    spoiled: dict[str, Any]
    """Values that take the place of the good ones."""


VALUE_FAULTS = (
    Fault("CAST", "x", {"x": "many"}),
    Fault("MISSING", "x", {"x": None}),
    Fault("MISSING", "d", {"d": None}),
    Fault("RANGE", "x", {"x": 1e39}),
    Fault("RANGE", "i", {"i": 2.5}),
    Fault("MODEL", "", {"i": 8}),
    Fault("MODEL", "", {"i": -9}),
    Fault("NONFINITE", "score", {"x": 0.0}),
)
CRASH = Fault("CRASH", "", {"n": LEAST, "d": -1})
SHORT, LONG, LATIN = (Fault("PARSE", "", {"": how}) for how in ("short", "long", "latin"))
CUT, LIST, TWO = (Fault("PARSE", "", {"": how}) for how in ("cut", "list", "two"))
NOTES = (
    "plain",
    "NA",
    'says "so"',
    "two\nlines",
    "a,b\nc,d,e\n\nf",
    "",
    '"',
    "caf\u00e9 \u2713",
    "1,2,3,4,5,6\n" * 3,
)


def good(number: int, chance: random.Random) -> Row:
    """Return a row that can be scored."""
    return {
        "id": number, "x": chance.randint(1, 4000) / 8, "i": chance.randrange(8),
        "n": chance.randint(LEAST + 1, -LEAST - 1), "d": chance.choice((-7, -1, 1, 3, 2**40)),
        "note": NOTES[number % len(NOTES)],
    }  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """A file, the lines its rejects must be, and the rows that are left."""

    path: Path
    rejects: list[dict[str, Any]]
    rows: pd.DataFrame
    """As they should come out, but for the predictions."""

    def expected(self, model: Path) -> dict[str, Any]:
        """Return the oracle's predictions for the rows that are left."""
        return oracle.predict(model, self.rows)


def plan(
    rows: int, faults: Sequence[Fault], each: int, crashes: int, seed: int
) -> list[tuple[Row, Fault | None]]:
    """Return rows, `each` of every fault among them; those that crash stand close together."""
    chance = random.Random(seed)
    table = [(good(number, chance), None) for number in range(rows)]
    places = chance.sample(range(rows), each * len(faults))
    at: dict[int, Fault] = dict(zip(places, [f for f in faults for _ in range(each)], strict=True))
    at |= dict.fromkeys(range(rows // 2, rows // 2 + 2 * crashes, 2), CRASH)
    return [(row | fault.spoiled if (fault := at.get(i)) else row, fault) for i, (row, _) in enumerate(table)]


def _left(table: Sequence[tuple[Row, Fault | None]]) -> pd.DataFrame:
    frame = pd.DataFrame([row for row, fault in table if fault is None], columns=list(COLUMNS))
    return frame.astype({"x": "float64", "i": "int64", "n": "int64", "d": "int64", "note": "string"})


# -- CSV --------------------------------------------------------------------------------------


def csv(path: Path, table: Sequence[tuple[Row, Fault | None]]) -> Planted:
    """Write rows as CSV: quoted line ends, blank lines, and every fault that a text can have."""
    raw = bytearray(",".join(COLUMNS).encode() + b"\n")
    rejects, line = [], 2
    for number, (row, fault) in enumerate(table, 1):
        blank = b"\n" if number % 997 == 0 else b""
        record = _csv_record(row, fault)
        raw += blank
        line += len(blank)
        if fault:
            place = {"record": number, "line": line, "byte_offset": len(raw)}
            rejects.append(_reject(path, fault, place, record))
        raw += record + b"\n"
        line += record.count(b"\n") + 1
    path.write_bytes(raw)
    return Planted(path, rejects, _left(table).replace("", pd.NA))  # in CSV they are one


def _reject(path: Path, fault: Fault, place: dict[str, Any], record: bytes) -> dict[str, Any]:
    told = {"column": fault.column, "class": fault.kind, "raw": record.decode("utf-8", "backslashreplace")}
    return {"file": str(path), **place, **told}


def _csv_record(row: Row, fault: Fault | None) -> bytes:
    texts = [_field(row[name]) for name in COLUMNS]
    spoiled = {
        "short": ",".join(texts[:3]).encode(),
        "long": ",".join([*texts, "more"]).encode(),
        "latin": ",".join([*texts[:-1], "caf"]).encode() + b"\xe9",
    }
    return spoiled.get(row.get("", ""), ",".join(texts).encode()) if fault else ",".join(texts).encode()


def _field(value: Any) -> str:
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text


# -- JSON lines, Parquet ----------------------------------------------------------------------


def jsonl(path: Path, table: Sequence[tuple[Row, Fault | None]]) -> Planted:
    """Write rows as JSON lines."""
    raw = bytearray()
    rejects = []
    for number, (row, fault) in enumerate(table, 1):
        record = _json_record(row)
        if fault:
            place = {"record": number, "line": number, "byte_offset": len(raw)}
            rejects.append(_reject(path, fault, place, record))
        raw += record + b"\n"
    path.write_bytes(raw)
    return Planted(path, rejects, _left(table))


def _json_record(row: Row) -> bytes:
    text = json.dumps({name: row[name] for name in COLUMNS}).encode()
    spoiled = {
        "cut": text[:-5], "list": b"[" + text + b"]", "two": text + text,
        "latin": text[:-2] + b'\xe9"}',
    }  # fmt: skip
    return spoiled.get(row.get("", ""), text)


def parquet(path: Path, table: Sequence[tuple[Row, Fault | None]], group_rows: int) -> Planted:
    """Write rows as Parquet: records are numbered, there are no lines."""
    columns = {name: pa.array([row[name] for row, _ in table]) for name in COLUMNS}
    pq.write_table(pa.table(columns), path, row_group_size=group_rows)
    place = {"line": None, "byte_offset": None}
    rejects = [
        {"file": str(path), "record": number, **place, "column": fault.column, "class": fault.kind}
        for number, (_, fault) in enumerate(table, 1)
        if fault
    ]
    return Planted(path, rejects, _left(table))


# -- what came of it --------------------------------------------------------------------------

KEYS = ("file", "record", "line", "byte_offset", "column", "class", "raw")


def found(path: Path, keys: Sequence[str] = KEYS) -> list[dict[str, Any]]:
    """Return what a rejects file says of each reject."""
    return [{key: each[key] for key in keys} for each in map(json.loads, path.read_text().split("\n")[:-1])]


def faults_of(planted: Planted, rejects: Path, keys: Sequence[str] = KEYS) -> list[str]:
    """Return what a rejects file says wrong of what was planted."""
    got = found(rejects, keys)
    wrong = [f"{a} is not {b}" for a, b in zip(got, planted.rejects, strict=False) if a != b]
    counts = [] if len(got) == len(planted.rejects) else [f"{len(got)} rejects of {len(planted.rejects)}"]
    modes = [] if rejects.stat().st_mode & 0o777 == 0o600 else ["others may read the rejects"]
    return [*counts, *wrong[:3], *modes]


def rows_are_the_oracles(planted: Planted, output: Path, model: Path) -> bool:
    """Whether an output has all rows that are left, in order, with the oracle's bits."""
    table = pd.read_parquet(output)
    kept = list(table["id"]) == list(planted.rows["id"])
    return (
        kept
        and table["note"].astype("string").equals(planted.rows["note"])
        and all(oracle.same(table[name], values) for name, values in planted.expected(model).items())
    )


class Watcher:
    """A listener that remembers which partitions were scored, and which had been."""

    def __init__(self) -> None:
        self.scored: list[int] = []
        self.resumed: list[int] = []

    def on(self, event: Event) -> None:
        """Take note of a partition."""
        if isinstance(event, PartitionScored):
            (self.resumed if event.resumed else self.scored).append(event.index)


def faults_of_both_runs(planted: Planted, folder: Path, size: int, keys: Sequence[str] = KEYS) -> list[str]:
    """Score without enough of a budget, and with it; return what is not as it should be.

    The first run is refused with every reject told, the second one scores no row again.
    """
    made, options = model(folder / "model.onnx"), _options(folder, size)
    output, rejects = folder / "out.parquet", folder / "out.rejects.jsonl"
    first, again = Watcher(), Watcher()
    budget = len(planted.rejects)
    try:
        bs.score(planted.path, output, listener=first, max_errors=budget - 1, **options)
    except DataError as error:
        faults = [] if "cannot be scored" in error.message else [str(error)]
    else:
        faults = ["more rejects than the budget are published"]
    faults += ["an output is there"] * output.exists() + faults_of(planted, rejects, keys)
    said = rejects.read_bytes()
    report = bs.score(planted.path, output, listener=again, max_errors=budget, **options)
    claimed = (report.rows, report.receipt.rows_rejected)
    faults += [f"{claimed} rows and rejects are claimed"] * (claimed != (len(planted.rows), budget))
    faults += [f"{len(again.scored)} partitions are scored again"] * bool(again.scored)
    faults += ["partitions are missing"] * (sorted(again.resumed) != list(range(report.partitions)))
    faults += ["the second rejects file is another one"] * (rejects.read_bytes() != said)
    faults += ["rows differ from the oracle's"] * (not rows_are_the_oracles(planted, output, made))
    return faults


def _options(folder: Path, size: int) -> Any:
    return {
        "model": folder / "model.onnx", "keep": ("id", "note"), "on_nonfinite": "reject",
        "partition_size": size, "workers": 2,
    }  # fmt: skip


def faults_of_the_command(planted: Planted, folder: Path, size: int) -> list[str]:
    """Do as `faults_of_both_runs` by the command, which outlives rows that kill its process."""
    made, output, rejects = model(folder / "model.onnx"), folder / "out.parquet", folder / "out.rejects.jsonl"
    arguments = [
        "-m", made, "--keep", "id,note", "--on-nonfinite", "reject", "--partition-size", size, "--workers", 2,
    ]  # fmt: skip
    command = [sys.executable, "-m", "batchserve", "score", planted.path, output, *arguments]
    runs, said = [], b""
    for i, budget in enumerate((len(planted.rejects) - 1, len(planted.rejects))):
        words = list(map(str, [*command, "--log-json", folder / f"log{i}", "--max-errors", budget]))
        runs.append(subprocess.run(words, capture_output=True, text=True, check=False))
        said = said or rejects.read_bytes()
    faults = [run.stderr for run, code in zip(runs, (65, 0), strict=True) if run.returncode != code]
    faults += ["a traceback is shown"] * any("Traceback" in run.stderr for run in runs)
    if faults:
        return faults
    faults += ["no partition is scored at first"] * (not scored_in(folder / "log0"))
    faults += ["partitions are scored again"] * (scored_in(folder / "log1") > 0)
    faults += ["the second rejects file is another one"] * (rejects.read_bytes() != said)
    faults += ["rows differ from the oracle's"] * (not rows_are_the_oracles(planted, output, made))
    return faults + faults_of(planted, rejects)


def scored_in(log: Path) -> int:
    """Return how many partitions were scored in a run, by its log."""
    return sum(json.loads(line)["event"] == "partition_scored" for line in log.read_text().splitlines())


# -- the four files ---------------------------------------------------------------------------

PLACES = tuple(key for key in KEYS if key != "raw")
TYPED_FAULTS = tuple(fault for fault in VALUE_FAULTS if fault.kind != "CAST" and fault.spoiled != {"i": 2.5})


def check_csv(folder: Path, seed: int) -> list[str]:
    """Plant 1,001 bad rows of eleven kinds in 100,000, in some twenty partitions."""
    table = plan(100_000, [*VALUE_FAULTS, SHORT, LONG, LATIN], each=91, crashes=0, seed=seed)
    return faults_of_both_runs(csv(folder / "rows.csv", table), folder, 300_000)


def check_jsonl(folder: Path, seed: int) -> list[str]:
    """Plant 120 bad lines of twelve kinds in 10,000, in some ten partitions."""
    table = plan(10_000, [*VALUE_FAULTS, CUT, LIST, TWO, LATIN], each=10, crashes=0, seed=seed)
    return faults_of_both_runs(jsonl(folder / "rows.jsonl", table), folder, 100_000)


def check_parquet(folder: Path, seed: int) -> list[str]:
    """Plant 60 bad rows of six kinds in 10,000, in five row groups."""
    table = plan(10_000, TYPED_FAULTS, each=10, crashes=0, seed=seed)
    return faults_of_both_runs(parquet(folder / "rows.parquet", table, 2_000), folder, 50_000, PLACES)


def check_crash(folder: Path, seed: int) -> list[str]:
    """Plant three rows that kill the process, and thirty others, in 20,000."""
    table = plan(20_000, [*VALUE_FAULTS, SHORT, LATIN], each=3, crashes=3, seed=seed)
    return faults_of_the_command(csv(folder / "rows.csv", table), folder, 100_000)


CHECKS: tuple[tuple[Callable[[Path, int], list[str]], int], ...] = (
    (check_csv, 1_001), (check_jsonl, 120), (check_parquet, 60), (check_crash, 33),
)  # fmt: skip
"""Each with the rows that it plants."""
