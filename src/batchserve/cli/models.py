"""The commands that look at models: compared, measured, evaluated, exported, shown."""

from pathlib import Path
from typing import Annotated

import typer

from batchserve.cli import flags, settings


def tune(  # noqa: PLR0913, PLR0917  one parameter per flag
    ctx: typer.Context,
    inputs: flags.Inputs,
    model: flags.ModelPath = None,
    model_sha256: flags.ModelSha256 = None,
    features: flags.Features = None,
    map: flags.Map = None,
    set: flags.Set = None,
    outputs: flags.Outputs = None,
    rows_depend: flags.RowsDepend = None,
    custom_ops: flags.CustomOps = None,
    device: flags.Device = None,
    on_null: flags.OnNull = None,
    format: flags.Format = None,
    delimiter: flags.Delimiter = None,
    quote: flags.Quote = None,
    escape: flags.Escape = None,
    header: flags.Header = None,
    skip_lines: flags.SkipLines = None,
    encoding: flags.Encoding = None,
    type: flags.Type = None,
    workers: flags.Workers = None,
    config: flags.Config = None,
    debug: flags.Debug = None,
) -> None:
    """Measure which batch size and threads the model runs fastest with, and write them to the config.

    Example: batchserve tune flights.csv --model model.onnx
    """
    wanted = settings.of(ctx, inputs, config)
    from batchserve import console
    from batchserve import tune as tuning
    from batchserve.config import FILE_NAME

    found = tuning.tuned(wanted.job, inputs)
    path = wanted.file if wanted.file and not wanted.beside else Path(FILE_NAME)
    console.table("rows/s of the model alone, on all workers", console.trials(found))
    if not found.changes:
        console.out("all stays as it is: nothing is a tenth faster")
        return
    tuning.write(path, found.changes)
    changes = ", ".join(f"{key} = {value}" for key, value in found.changes.items())
    console.out(f"{path}: {changes} ({found.best.rows_per_s / found.now.rows_per_s:.2f} times as fast)")


def compare(  # noqa: PLR0913, PLR0917  one parameter per flag
    ctx: typer.Context,
    first: Annotated[str, typer.Argument(help="An ONNX model.", metavar="A.onnx")],
    second: Annotated[str, typer.Argument(help="The one to compare it with.", metavar="B.onnx")],
    inputs: flags.Inputs,
    tolerance: flags.Allowed = 0.0,
    top: flags.Top = 5,
    model_sha256: flags.ModelSha256 = None,
    features: flags.Features = None,
    map: flags.Map = None,
    set: flags.Set = None,
    outputs: flags.Outputs = None,
    rows_depend: flags.RowsDepend = None,
    custom_ops: flags.CustomOps = None,
    device: flags.Device = None,
    on_null: flags.OnNull = None,
    limit: flags.Limit = None,
    format: flags.Format = None,
    delimiter: flags.Delimiter = None,
    quote: flags.Quote = None,
    escape: flags.Escape = None,
    header: flags.Header = None,
    skip_lines: flags.SkipLines = None,
    encoding: flags.Encoding = None,
    type: flags.Type = None,
    workers: flags.Workers = None,
    batch_rows: flags.BatchRows = None,
    json: flags.Json = None,
    config: flags.Config = None,
    debug: flags.Debug = None,
) -> None:
    """Run two models over the same rows and say where their outputs differ.

    Example: batchserve compare champion.onnx challenger.onnx flights.csv
    """
    wanted = settings.of(ctx, inputs, config, model={"a": first, "b": second})
    from batchserve import comparison, console, log

    found = comparison.compared(wanted.job, inputs, tolerance, top)
    if wanted.job.json_:
        console.out(log.as_json(found.facts(), indent=1))
        return
    for title, facts in found.tables().items():
        console.table(title, facts)


def inspect(  # noqa: PLR0913, PLR0917  one parameter per flag
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(help="An ONNX model, or a data file.")],
    format: flags.Format = None,
    delimiter: flags.Delimiter = None,
    quote: flags.Quote = None,
    escape: flags.Escape = None,
    header: flags.Header = None,
    skip_lines: flags.SkipLines = None,
    encoding: flags.Encoding = None,
    custom_ops: flags.CustomOps = None,
    model_sha256: flags.ModelSha256 = None,
    debug: flags.Debug = None,
) -> None:
    """Show what a model takes and gives, or what a data file holds.

    Example: batchserve inspect model.onnx
    """
    from batchserve import console, references, survey

    if not references.is_reference(file) and survey.is_data(file):
        others = {"file", "custom_ops", "model_sha256"}
        said = {name: value for name, value in ctx.params.items() if value is not None and name not in others}
        console.table(file, survey.described(file, **said))
        return
    from batchserve import frames

    console.table(file, frames.described(file, custom_ops, model_sha256))


def evaluate(  # noqa: PLR0913, PLR0917  one parameter per flag
    scored: Annotated[str, typer.Argument(help="A scored file, dataset folder or glob.", metavar="SCORED")],
    label: flags.Label,
    prediction: flags.Prediction,
    task: flags.TaskName = None,
    threshold: flags.Threshold = 0.5,
    positive: flags.Positive = None,
    classes: flags.Classes = None,
    by: flags.By = None,
    bins: flags.Bins = 10,
    plot: flags.Plot = None,
    format: flags.Format = None,
    json: flags.Json = None,
    debug: flags.Debug = None,
) -> None:
    """Compare predictions with labels: metrics, calibration, groups, a plot.

    Example: batchserve evaluate flights.parquet --label arr_delay --prediction predicted_delay
    """
    from batchserve import api, console, log

    found = api.evaluate(
        scored, label=label, prediction=prediction, task=task, threshold=threshold, positive=positive,
        classes=classes or (), by=by or (), bins=bins, format=format, plot=plot,
    )  # fmt: skip
    if json:
        console.out(log.as_json(found.facts(), indent=1))
    else:
        console.lines(str(found))


def export(  # noqa: PLR0913, PLR0917  one parameter per flag
    source: Annotated[
        str, typer.Argument(help="A trained model's file, or package.module:factory.", metavar="SOURCE")
    ],
    path: Annotated[str, typer.Argument(help="Where the ONNX model goes.", metavar="MODEL.onnx")],
    sample: Annotated[str, typer.Option("--sample", help="Data such as will be scored.", metavar="DATA")],
    features: flags.Features = None,
    weights: flags.Weights = None,
    tolerance: flags.Tolerance = None,
    accept_drift: flags.AcceptDrift = None,
    precision: flags.Precision = None,
    trust_pickle: flags.TrustPickle = None,
    overwrite: flags.Replace = None,
    debug: flags.Debug = None,
) -> None:
    """Convert a trained model to ONNX, and write that only if it predicts the same.

    Example: batchserve export pipeline.joblib model.onnx --sample flights.csv --trust-pickle
    """
    from batchserve import api, console, spelling

    names = spelling.items(features or ())
    done = api.export(
        source, path, sample=sample, features=names, weights=weights, tolerance=tolerance or (),
        accept_drift=bool(accept_drift), trust_pickle=bool(trust_pickle), overwrite=bool(overwrite),
        precision=precision,  # type: ignore[arg-type]  # read by the library, with its reasons
    )  # fmt: skip
    console.table(path, done.facts())
