"""An evaluation in words: lines of text for a terminal or a notebook, from its facts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from batchserve.errors import redacted

Facts = Mapping[str, Any]
NAMES = {
    "mae": "MAE", "rmse": "RMSE", "bias": "bias", "r2": "R2", "mape": "MAPE",
    "largest_error": "largest error", "roc_auc": "ROC AUC", "average_precision": "average precision",
    "log_loss": "log loss", "brier": "Brier", "ece": "ECE", "accuracy": "accuracy",
    "precision": "precision", "recall": "recall", "f1": "F1", "macro_precision": "macro precision",
    "macro_recall": "macro recall", "macro_f1": "macro F1", "weighted_precision": "weighted precision",
    "weighted_recall": "weighted recall", "weighted_f1": "weighted F1",
}  # fmt: skip
"""Metrics and how they are called in words, in the order they are shown."""
_GROUPED = {
    "regression": ("mae", "rmse", "bias", "r2"),
    "binary": ("roc_auc", "log_loss", "ece", "precision", "recall"),
    "multiclass": ("accuracy", "macro_f1", "weighted_f1"),
}
"""What is shown of each group; JSON has all."""
_CLASSES_SHOWN = 12
_GROUPS_SHOWN = 20


def lines(facts: Facts) -> Iterator[str]:
    """Give an evaluation as text, line by line.

    Args:
        facts: What `Evaluation.facts` gives.
    """
    yield redacted(f"{facts['path']}: {facts['prediction']} against {facts['label']}, {facts['task']}")
    yield from _indented(_rows(facts), left=2)
    if facts["calibration"]:
        yield from ("", "calibration")
        yield from _indented(_calibration(facts["calibration"]))
    yield from _confusion(facts)
    for column, groups in facts["by"].items():
        yield from ("", f"by {column}")
        yield from _indented(_groups(facts["task"], groups), left=1)
        if len(groups) > _GROUPS_SHOWN:
            yield f"  and {len(groups) - _GROUPS_SHOWN:,} more with fewer rows: --json has all"


def _rows(facts: Facts) -> Iterator[list[str]]:
    """Give name and value of everything that is one number."""
    metrics = facts["metrics"]
    of = f" of {facts['rows']:,}" if facts["left_out"] else ""
    yield ["rows", f"{metrics['rows']:,}{of}"]
    yield from ([f"left out: {reason}", f"{rows:,}"] for reason, rows in facts["left_out"].items())
    if facts["task"] == "binary":
        yield ["positive", f"{metrics['positives']:,} are {facts['positive']}"]
    for name, called in NAMES.items():
        if name in metrics and not (facts["task"] == "multiclass" and metrics[name] is None):
            yield [called, f"{number(metrics[name])}{_remark(name, facts)}"]
    if metrics.get("scores_outside"):
        yield ["no probabilities", f"{metrics['scores_outside']:,} scores are below 0 or above 1"]


def _remark(name: str, facts: Facts) -> str:
    """Return what is to be known of a metric."""
    metrics = facts["metrics"]
    if name == "mape" and (zeros := metrics["rows"] - metrics["mape_rows"]):
        return f", without {zeros:,} row{'s' * (zeros != 1)} whose label is 0"
    if name == "largest_error" and metrics[name] is not None:
        predicted, label = metrics["largest_error_prediction"], metrics["largest_error_label"]
        return f", predicted {number(predicted)} for {number(label)}"
    if metrics.get(f"{name}_within"):
        return f", to within {metrics[f'{name}_within']:.1g}: there are too many different scores"
    if name == "accuracy" and "threshold" in facts:
        return f", scores of {facts['threshold']:g} and more are {facts['positive']}"
    return ""


def number(value: float | None) -> str:
    """Return a number in six digits, or a dash for one that is not defined.

    Example:
        >>> number(0.123456789), number(12345678.0), number(None)
        ('0.123457', '12,345,678', '-')
    """
    if value is None:
        return "-"
    return f"{value:,.0f}" if 1e6 <= abs(value) < 1e15 else f"{value:.6g}"  # noqa: PLR2004  no exponent there


def _calibration(table: Sequence[Facts]) -> Iterator[list[str]]:
    yield ["from", "to", "rows", "predicted", "true"]
    for each in table:
        edges = [number(each["from"]), number(each["to"])]
        yield [*edges, f"{each['rows']:,}", number(each["mean_prediction"]), number(each["mean_label"])]


def _confusion(facts: Facts) -> Iterator[str]:
    """Give what was predicted for which label, and how each class fares."""
    if "confusion" not in facts:
        return
    names = facts.get("classes") or [f"not {facts['positive']}", facts["positive"]]
    if len(names) > _CLASSES_SHOWN:
        yield from ("", f"{len(names):,} classes: --json has what was predicted for each")
        return
    head = [f"{facts['label']} \\ predicted", *names]
    counts = [[name, *(f"{n:,}" for n in row)] for name, row in zip(names, facts["confusion"], strict=True)]
    yield ""
    yield from _indented([head, *counts], left=1)
    if "per_class" in facts:
        yield ""
        yield from _indented(_per_class(facts["per_class"]), left=1)


def _per_class(classes: Sequence[Facts]) -> Iterator[list[str]]:
    yield ["class", "rows", "precision", "recall", "F1"]
    for each in classes:
        shares = [number(each[name]) for name in ("precision", "recall", "f1")]
        yield [each["class"], f"{each['rows']:,}", *shares]


def _groups(task: str, groups: Sequence[Facts]) -> Iterator[list[str]]:
    names = _GROUPED[task]
    yield ["", "rows", *(NAMES[name] for name in names)]
    for each in groups[:_GROUPS_SHOWN]:
        value = "(null)" if each["value"] is None else each["value"]
        yield [value, f"{each['rows']:,}", *(number(each[name]) for name in names)]


def _indented(cells: Iterator[list[str]] | Sequence[list[str]], left: int = 0) -> Iterator[str]:
    """Give rows of cells as lines: the first `left` columns to the left, numbers to the right."""
    rows = list(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = [
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"  {'  '.join(padded)}".rstrip()
