"""The long forms of what proves that every row is accounted for; prints one table of figures.

    python tests/fuzz.py                        # all of it: an hour
    python tests/fuzz.py --share 0.1            # a tenth of each
    python tests/fuzz.py mutants differential   # some
    python tests/fuzz.py mutants --seed 7       # other mutants

Exits with 1 if a promise was broken.
"""

import argparse
import json
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import differential
import longform
import mutants
import planted
import zoo
from longform import Found, Row

MUTANTS = 10_000
EXAMPLES = 1_000
ROUNDS = 10
FLIGHTS = Path(__file__).parent.parent / "examples" / "flights"


def mutate(home: Path, share: float, seed: int) -> Found:
    """Mutate real files; every record of what comes of it is scored, or rejected at its place."""
    found = mutants.run(max(1, int(MUTANTS * share)), seed)
    return list(found.facts().items()), found.faults


def differ(home: Path, share: float, seed: int) -> Found:
    """Score files made by chance, and compare with the oracle, Polars and DuckDB."""
    found = differential.run(home, max(1, int(EXAMPLES * share)), seed)
    return list(found.facts().items()), found.faults


def plant(home: Path, share: float, seed: int) -> Found:
    """Plant bad rows of every class, again and again."""
    rounds, rows, broken = max(1, int(ROUNDS * share)), 0, []
    for number in range(rounds):
        for check, count in planted.CHECKS:
            folder = home / f"{number} {check.__name__}"
            folder.mkdir()
            broken += [f"{check.__name__}, seed {seed + number}: {f}" for f in check(folder, seed + number)]
            rows += count
    return [
        ("files with planted rows", rounds * len(planted.CHECKS)),
        ("bad rows planted, each found", rows),
    ], broken


def judge(home: Path, share: float, seed: int) -> Found:
    """Score the models of the onnx package."""
    every = max(1, round(1 / share))
    counts = zoo.run(every)
    return list(counts.most_common()), zoo.shortfalls(counts, every)


# -- 3.4 million flights ----------------------------------------------------------------------

BAD = b"2013,6,1,517,515\n"
"""A flight that ends too early, put in after two thirds."""


def fly(home: Path, share: float, seed: int) -> Found:
    """Put one bad row among 3,367,759 others: refused with its place, then published in a moment."""
    path, output = home / "flights.csv", home / "out.parquet"
    expected, rows = _flights(path, max(1, round(10 * share)))
    command = [
        sys.executable, "-m", "batchserve", "score", path, output, "-m", FLIGHTS / "model.onnx",
        "--on-null", "nan",
    ]  # fmt: skip
    refused, first_s = _timed([*command, "--log-json", home / "first.log"])
    rejects = home / "out.rejects.jsonl"
    said = rejects.read_bytes()
    there = output.exists()
    done, again_s = _timed([*command, "--max-errors", "1", "--log-json", home / "again.log"])
    if done.returncode:
        return [], [refused.stderr, done.stderr]
    first, again = (planted.scored_in(home / name) for name in ("first.log", "again.log"))
    got = [{key: each[key] for key in expected} for each in map(json.loads, said.splitlines())]
    wrong = {
        f"exit {refused.returncode} and {done.returncode}": (refused.returncode, done.returncode) != (65, 0),
        "an output was published with a bad row": there,
        f"the reject is {got}": got != [expected],
        "the second rejects file is another one": rejects.read_bytes() != said,
        "other rows are there": pq.read_metadata(output).num_rows != rows,
        f"{first} and then {again} partitions were scored": not first or again > 0,
    }
    figures: list[Row] = [
        ("rows of the CSV", rows + 1),
        ("rows published with --max-errors 1", pq.read_metadata(output).num_rows),
        ("line of the bad row", expected["line"]), ("seconds to exit 65", f"{first_s:.1f}"),
        ("seconds of the rerun, no row scored", f"{again_s:.1f}"),
    ]  # fmt: skip
    return figures, [what for what, broken in wrong.items() if broken]


def _flights(path: Path, times: int) -> tuple[dict[str, Any], int]:
    """Write the flights of 2013 `times` times with a bad row; return its reject, and the other rows."""
    header, lines = runpy.run_path(str(FLIGHTS / "make_full.py"))["read"]()
    each, cut = lines.count(b"\n"), lines.index(b"\n", len(lines) * 2 // 3) + 1
    bad_at = times * 2 // 3
    with path.open("wb") as file:
        file.write(header)
        for i in range(times):
            file.write(
                lines[:cut] + BAD + lines[cut:].removeprefix(_first(lines[cut:])) if i == bad_at else lines
            )
    before = bad_at * each + lines.count(b"\n", 0, cut)
    offset = len(header) + bad_at * len(lines) + cut
    place = {"file": str(path), "record": before + 1, "line": before + 2, "byte_offset": offset}
    return place | {"column": "", "class": "PARSE", "raw": BAD.decode().strip()}, times * each - 1


def _first(lines: bytes) -> bytes:
    return lines[: lines.index(b"\n") + 1]


def _timed(command: Sequence[object]) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.monotonic()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    return done, time.monotonic() - started


# -- all of it --------------------------------------------------------------------------------

PARTS: dict[str, Callable[..., Found]] = {
    "mutants": mutate, "differential": differ, "planted": plant, "zoo": judge, "flights": fly,
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Run the parts named, print the table, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which [default: all]")
    parser.add_argument("--share", type=float, default=1.0, help="of the long form [default: 1]")
    parser.add_argument("--seed", type=int, default=1, help="of all chance [default: 1]")
    asked = parser.parse_args(arguments)
    names = asked.parts or PARTS
    return longform.run({name: partial(PARTS[name], share=asked.share, seed=asked.seed) for name in names})


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
