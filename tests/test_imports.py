"""Start-up is a feature: nothing heavy is imported before it is needed."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import batchserve as bs
from workbench import IRIS, IRIS_MODEL

HEAVY = {"dask", "distributed", "onnx", "onnxruntime", "pandas", "numpy", "pyarrow"}


def modules_after(program: str) -> set[str]:
    """Return the top-level modules that a new interpreter has loaded after `program`."""
    report = (
        "\nimport sys, json\nprint('\\n' + json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program + report], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def command(*arguments: str | Path) -> str:
    """Return a program that runs the command line and goes on."""
    return (
        "from batchserve.cli import main\n"
        f"try: main({[str(argument) for argument in arguments]!r})\n"
        "except SystemExit as stopped: assert stopped.code == 0, stopped.code\n"
    )


def test_importing_batchserve_loads_nothing_heavy() -> None:
    """`import batchserve` loads no library that takes time."""
    assert modules_after("import batchserve") & {*HEAVY, "pydantic", "typer", "rich"} == set()


@pytest.mark.parametrize("arguments", [("--help",), ("score", "--help"), ("plan", "-h")], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    """Help pages need neither the runtime, nor Arrow, nor Dask."""
    assert modules_after(command(*arguments)) & HEAVY == set()


def test_a_usage_error_loads_nothing_heavy() -> None:
    """A wrong option is told without loading the runtime, Arrow or Dask."""
    program = (
        "from batchserve.cli import main\n"
        "try: main(['score', '--nonsense'])\n"
        "except SystemExit as stopped: assert stopped.code == 2, stopped.code\n"
    )

    assert modules_after(program) & {"dask", "distributed", "onnxruntime", "pandas", "pyarrow"} == set()


def test_one_partition_is_scored_without_dask(tmp_path: Path) -> None:
    """A job of one partition imports neither Dask nor pandas nor the onnx package."""
    program = command("score", IRIS, tmp_path / "out.parquet", "-m", IRIS_MODEL)

    loaded = modules_after(program)

    assert loaded & {"dask", "distributed", "pandas", "onnx", "bokeh", "tornado"} == set()
    assert {"onnxruntime", "pyarrow"} <= loaded


def test_no_dashboard_no_bokeh(tmp_path: Path) -> None:
    """A job of several partitions imports neither Dask nor bokeh unless --dashboard asks for it."""
    program = command(
        "score", IRIS, tmp_path / "out.parquet", "-m", IRIS_MODEL, "--partition-size", "1k", "--workers", "1"
    )

    loaded = modules_after(program)

    assert {"bokeh", "dask", "distributed"} & loaded == set()


def test_all_is_sorted_and_complete() -> None:
    """`__all__` is sorted and lists exactly the names that the package declares for type checkers."""
    tree = ast.parse(Path(str(bs.__file__)).read_text())
    declared = [
        alias.name
        for block in tree.body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    ]

    assert bs.__all__ == sorted(bs.__all__)
    assert set(bs.__all__) == set(declared)


def test_every_public_name_is_there() -> None:
    """Every name in `__all__` and the version can be had, and `dir` lists them."""
    assert all(getattr(bs, name).__module__.startswith("batchserve.") for name in bs.__all__)
    assert bs.__version__[0].isdigit()
    assert {*bs.__all__, "__version__"} <= set(dir(bs))


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A name that is not there gives Python's usual error."""
    with pytest.raises(AttributeError, match="has no attribute 'scores'"):
        _ = bs.scores
