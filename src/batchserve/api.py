"""The functions of `import batchserve`: the command line's own, with the same words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Literal, Unpack

from batchserve import config as configuration
from batchserve import frames, job, preview, report, spelling
from batchserve.config import Options
from batchserve.errors import UsageError, redacted
from batchserve.events import Listener, Silent
from batchserve.outputs import Workspace
from batchserve.planning import Plan, footer
from batchserve.report import Report
from batchserve.target import Target

if TYPE_CHECKING:
    import dask.dataframe as dd

    from batchserve.comparison import Comparison
    from batchserve.evaluation import Evaluation
    from batchserve.exporting import Exported
    from batchserve.questions import Questions

Path = str | PathLike[str]
Paths = Path | Sequence[Path]


def score(
    inputs: Paths,
    output: Path,
    *,
    cluster: Any = None,
    listener: Listener | None = None,
    config: Path | None = None,
    **options: Unpack[Options],
) -> Report:
    """Score files into one Parquet file or a dataset folder.

    Args:
        inputs: A path, glob or folder, or several, in order.
        output: A `.parquet` file, or a folder (no suffix, or ending in `/`).
        cluster: A `distributed` client or cluster to use; else the active client, else threads
            of this process. What was not opened here is not closed here.
        listener: Told what happens, see `batchserve.events`.
        config: A config file; else the usual ones are looked for.
        **options: The options of `batchserve score`, with underscores.

    Returns:
        What was done; prints well in a notebook.

    Raises:
        BatchserveError: With what is wrong and what to do; nothing is published then.

    Example:
        >>> import batchserve as bs
        >>> bs.score("examples/iris/iris.csv", "iris.parquet", overwrite=True).rows
        150
    """
    given = _given(inputs)
    settings = configuration.load(_flags(options), given, config=_text(config))
    return job.score(settings.job, given, fspath(output), listener or Silent(), cluster)


def plan(
    inputs: Paths, output: Path | None = None, *, config: Path | None = None, **options: Unpack[Options]
) -> "Preview":
    """Check everything and decide everything, but score nothing.

    Args:
        inputs: A path, glob or folder, or several, in order.
        output: Where the rows would go, to check that they can.
        config: A config file; else the usual ones are looked for.
        **options: The options of `batchserve score`, with underscores.

    Raises:
        BatchserveError: Every problem that can be seen before work starts.

    Example:
        >>> import batchserve as bs
        >>> bs.plan("examples/iris/iris.csv").partitions
        1
    """
    given = _given(inputs)
    settings = configuration.load(_flags(options), given, config=_text(config))
    made, target = job.plan(settings.job, given, fspath(output) if output is not None else None)
    return Preview(made, target)


def retry(
    path: Path, output: Path, *, listener: Listener | None = None, **options: Unpack[Options]
) -> Report:
    """Score the corrected records of a rejects file as their job scored the others.

    Args:
        path: A rejects file; the text `raw` of its lines may have been corrected.
        output: Where the rows go: a file, or a dataset to append to.
        listener: Told what happens.
        **options: What is to be other than in that job.

    Returns:
        What was done.

    Raises:
        BatchserveError: With what is wrong and what to do.

    Example:
        >>> import batchserve as bs
        >>> found = bs.score(
        ...     "examples/flights/flights.csv", "f.parquet", overwrite=True, on_null="reject", max_errors="3%"
        ... )
        >>> bs.retry("f.rejects.jsonl", "more.parquet", overwrite=True, on_null="nan").rows
        133
    """
    from batchserve import correction

    return correction.retry(fspath(path), fspath(output), _flags(options), listener or Silent())


def evaluate(
    path: Path, *, label: str, prediction: str, by: str | Sequence[str] = (), plot: Path | None = None,
    format: str | None = None, **asked: Unpack["Questions"],
) -> "Evaluation":  # fmt: skip
    """Compare the predictions of a scored file with its labels, in one pass over its rows.

    Args:
        path: A scored file, a dataset folder, or a glob.
        label: The column of what was to be predicted.
        prediction: The column of what was.
        by: Columns whose every value is a group of rows with metrics of its own.
        plot: A .html or .svg file to draw into.
        format: The format of the file; by its suffix by default.
        **asked: task, threshold, positive, classes and bins, as the flags of `batchserve evaluate`.

    Returns:
        The metrics; prints well in a notebook.

    Raises:
        BatchserveError: With what is wrong and what to do.

    Example:
        >>> import batchserve as bs
        >>> report = bs.score("examples/iris/iris.csv", "iris.parquet", overwrite=True)
        >>> found = bs.evaluate("iris.parquet", label="species", prediction="label")
        >>> round(found.metrics["accuracy"], 4)
        0.9733
    """
    from batchserve import evaluation
    from batchserve.questions import Asked

    if plot is not None:
        evaluation.check_plot(fspath(plot))
    found = evaluation.evaluate(
        fspath(path), label, prediction, Asked.of(**asked), by=tuple(spelling.items(by)), given=format
    )  # fmt: skip
    if plot is not None:
        found.plot(fspath(plot))
    return found


def compare(
    a: Path,
    b: Path,
    inputs: Paths,
    *,
    tolerance: float = 0.0,
    top: int = 5,
    config: Path | None = None,
    **options: Unpack[Options],
) -> "Comparison":
    """Run two models over the same rows and say where their outputs differ; nothing is written.

    Args:
        a: One model, the champion say.
        b: The other one.
        inputs: A path, glob or folder, or several, in order.
        tolerance: Numbers differ if |b - a| is more than this.
        top: How many of the rows that differ most are kept for every output.
        config: A config file; else the usual ones are looked for.
        **options: The options of `batchserve score`, with underscores.

    Raises:
        ModelError: The models have no output of one name and kind.
        BatchserveError: As when files are scored.

    Example:
        >>> import batchserve as bs
        >>> found = bs.compare(
        ...     "examples/iris/model.onnx", "examples/iris/model.onnx", "examples/iris/iris.csv"
        ... )
        >>> found.rows, found.differ
        (150, 0)
    """
    from batchserve import comparison

    given = _given(inputs)
    flags = _flags(options) | {"model": dict(zip(comparison.NAMES, (fspath(a), fspath(b)), strict=True))}
    settings = configuration.load(flags, given, config=_text(config))
    return comparison.compared(settings.job, given, tolerance, top)


def scored(inputs: Paths, *, config: Path | None = None, **options: Unpack[Options]) -> "dd.DataFrame":
    """Return a lazy Dask dataframe of the files' rows with their predictions.

    Columns are Arrow-backed, so that integers with nulls stay integers. Nothing is written.

    Args:
        inputs: A path, glob or folder, or several, in order.
        config: A config file; else the usual ones are looked for.
        **options: The options of `batchserve score`, with underscores.

    Raises:
        BatchserveError: Every problem that can be seen before work starts.

    Example:
        >>> import batchserve as bs
        >>> frame = bs.scored("examples/iris/iris.csv")
        >>> int((frame.label == "setosa").sum().compute())
        50
    """
    return frames.scored(plan(inputs, config=config, **options).plan)


def export(  # noqa: PLR0913  each is a flag of the command line
    model: Any,
    path: Path,
    *,
    sample: Any,
    features: Sequence[str] = (),
    weights: Path | None = None,
    tolerance: str | float | Sequence[str] = (),
    accept_drift: bool = False,
    trust_pickle: bool = False,
    overwrite: bool = False,
    precision: Literal["float16", "int8"] | None = None,
) -> "Exported":
    """Write a trained model as ONNX, if that is proven to predict as the model does.

    Args:
        model: A fitted estimator, pipeline, booster or torch module, or the path of its file; or the path
            of an ONNX model, of which `precision` makes a faster one.
        path: Where the ONNX model goes.
        sample: Rows such as will be scored: a path, or a pandas, Polars or Arrow frame.
        features: The model's columns, in order, where it does not know their names.
        weights: A file of weights for a module that `package.module:factory` makes.
        tolerance: `[OUTPUT=]X`: the difference that is allowed, as a share of the output's spread.
        accept_drift: Write the model whatever the differences are.
        trust_pickle: Read a pickle, which runs the code that is in it.
        overwrite: Replace a file that is there.
        precision: What matrix products are computed in; None leaves them as they are.

    Returns:
        What was written and what the two differ by; prints well in a notebook.

    Raises:
        BatchserveError: With what is wrong and what to do; nothing is written then.
    """
    from pathlib import Path as File

    from batchserve import exporting

    opening = exporting.Opening(trust_pickle=trust_pickle, weights=_text(weights))
    terms = exporting.terms(features, tolerance, precision, accept_drift=accept_drift, overwrite=overwrite)
    opened = exporting.opened(model, opening)
    return exporting.export(opened, File(path), exporting.sample_of(sample), terms)


@dataclass(frozen=True, repr=False)
class Preview:
    """What a job would do."""

    plan: Plan
    target: Target | None

    @property
    def plan_id(self) -> str:
        """The sha256 of all that changes a byte of the output."""
        return self.plan.plan_id

    @property
    def partitions(self) -> int:
        """How many tasks the job has."""
        return len(self.plan.partitions)

    def graph(self) -> "dd.DataFrame":
        """Return the lazy Dask dataframe of receipts that `score` would run, to look at.

        Raises:
            UsageError: The plan was made without an output.
        """
        from batchserve import graph

        if self.target is None:
            raise UsageError("a graph writes parts: plan with an output", "bs.plan(inputs, output)")
        space = Workspace(str(self.target.workspace), self.plan_id, tuple(footer(self.plan).items()))
        return graph.receipts(self.plan.partitions, self.plan.recipe, space, self.plan_id[:8])

    def facts(self) -> dict[str, str]:
        """Return what the job would do, in words."""
        return preview.plan_facts(self.plan)

    def __str__(self) -> str:
        return redacted("\n".join(f"{name:<12} {text}" for name, text in self.facts().items()))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return report.table_html("batchserve plan", self.facts())


def _given(inputs: Paths) -> list[str]:
    several = [inputs] if isinstance(inputs, str | PathLike) else inputs
    return [fspath(path) for path in several]


def _text(path: Path | None) -> str | None:
    return fspath(path) if path is not None else None


def _flags(options: Options) -> dict[str, Any]:
    given = {key: value for key, value in options.items() if value is not None}
    model = options.get("model")
    if isinstance(model, Mapping):
        return given | {"model": {name: fspath(path) for name, path in model.items()}}
    return given | ({"model": spelling.unnamed(fspath(model))} if model else {})
