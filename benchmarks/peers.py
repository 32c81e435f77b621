"""The same job by batchserve and by what else a user would pick, in turn, as whole processes.

    nox -s bench -- peers                               all of them, 311 MB of CSV
    nox -s bench -- peers polars hand --times 1 --model trees

Each peer is a script in `peers/`, written as its documentation says, batch size and threads as good as
we could make them, with the same micro-batches of 1,024 rows. Its scores are compared with batchserve's
before its time counts. A round runs every one once; the ratio of each to batchserve is taken within the
round, and the median of the rounds counts.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from budgets import BATCHSERVE, FLIGHTS, Command, Run, machine, run

HERE = Path(__file__).resolve().parent / "peers"
SCRIPTS = {
    "hand": "hand_loop", "polars": "polars_udf", "duckdb": "duckdb_udf", "daft": "daft_udf",
    "dask": "dask_naive", "mlflow": "mlflow_pyfunc", "ray": "ray_data", "spark": "spark_arrow",
}  # fmt: skip
SAME = """
import sys, numpy as np, pyarrow.dataset as ds
ours, theirs = (ds.dataset(path, exclude_invalid_files=True) for path in sys.argv[1:])
assert len(ours.schema) == len(theirs.schema), f"columns {theirs.schema.names}"
ours, theirs = (np.sort(each.to_table([each.schema.names[-1]])[0].to_numpy()) for each in (ours, theirs))
assert len(ours) == len(theirs), f"{len(theirs):,} rows instead of {len(ours):,}"
assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-6), "other scores"
"""


def commands(names: Sequence[str], source: Path, model: Path, python: str) -> dict[str, Command]:
    """Return the command of batchserve and of each peer; all write `out/done`."""
    ours = [BATCHSERVE, "score", str(source), "out/done.parquet", "-m", str(model), "--on-null", "nan"]

    def theirs(name: str) -> Command:
        return [python, str(HERE / f"{SCRIPTS[name]}.py"), str(source), str(model), "out/done.parquet"]

    return {"batchserve": ours} | {name: theirs(name) for name in names}


def checked(runs: dict[str, Command], folder: Path) -> list[str]:
    """Run each once; return those that give the same scores, and say why of the others."""
    good = []
    for name, command in runs.items():
        try:
            run(command, folder)
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / "out").rename(folder / name)
            pair = [str(folder / each / "done.parquet") for each in ("batchserve", name)]
            subprocess.run([sys.executable, "-c", SAME, *pair], check=True, capture_output=True, text=True)
        except SystemExit as error:
            print(f"{name} does not run: {str(error)[-2000:]}")
        except subprocess.CalledProcessError as error:
            print(f"{name} is left out: {error.stderr.strip().splitlines()[-1]}")
        else:
            good.append(name)
    return good


def table(rounds: Sequence[dict[str, Run]]) -> list[str]:
    """Return the lines of the result."""
    lines = ["| | time | its ratio to batchserve's (min to max) | peak memory |", "| --- | --- | --- | --- |"]
    for name in rounds[0]:
        ratios = [each[name].seconds / each["batchserve"].seconds for each in rounds]
        seconds = statistics.median(each[name].seconds for each in rounds)
        peak = statistics.median(each[name].peak_mb for each in rounds)
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {name} | {seconds:.2f} s | {spread} | {peak:,.0f} MB |")
    return lines


def seconds_of(command: Command, folder: Path) -> str:
    """Return where batchserve's own seconds go, as it tells them."""
    asked = ["out/mine.parquet" if each == "out/done.parquet" else each for each in command]
    done = subprocess.run([*asked, "--profile"], cwd=folder, capture_output=True, text=True, check=True)
    _, mark, told = (done.stderr + done.stdout).partition("profile:")
    return mark + told


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of: {', '.join(SCRIPTS)}")
    parser.add_argument("--model", choices=("linear", "trees"), default="linear")
    parser.add_argument("--times", type=int, default=10, help="how often the flights of 2013 are repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", default=sys.executable, help="the one that has the peers installed")
    asked = parser.parse_args()
    # Workers of a peer import what stands beside its script, by the same Python.
    found = [str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, found)), "PYSPARK_PYTHON": asked.python}
    print(machine(), end="\n\n")
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        # In a process of its own, as a child starts with the peak memory of its parent.
        subprocess.run([sys.executable, HERE.parent / "workloads.py", folder, str(asked.times)], check=True)
        model = folder / "linear.onnx" if asked.model == "linear" else FLIGHTS / "model.onnx"
        source = folder / f"flights-{asked.times}.csv"
        runs = commands(asked.names or list(SCRIPTS), source, model, asked.python)
        good = checked(runs, folder)
        rounds = [{name: run(runs[name], folder) for name in good} for _ in range(asked.rounds)]
        print("\n".join(table(rounds)))
        print(seconds_of(runs["batchserve"], folder))


if __name__ == "__main__":
    main()
