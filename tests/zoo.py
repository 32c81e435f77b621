"""The models of the `onnx` package's own tests, each scored from Parquet, or refused for a reason.

    python tests/zoo.py              all of them; prints the table of docs/models.md
    python tests/zoo.py test_add     why one is what it is

Every model is given its test data as columns and scored as a user would; the output is compared, to
the bit, with what onnxruntime gives when it is called directly.
"""

import ctypes
import json
import re
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq

import batchserve as bs
from batchserve import model
from batchserve.errors import BatchserveError

EQUAL = "scored, equal to the bit"
SET = "scored, equal to the bit, with `--set` for inputs that are not per row"
MIXED = "refused: rows change each other's scores"
LEAST_SCORED, LEAST_MIXED = 650, 25
"""How many of all models must at least be scored, and be found to mix rows."""
FAILS = "onnxruntime fails on its data"
OTHER = "other"
_TYPE = "refused: no column type is {}"
_NO_ROWS = "refused: no input has one row per record"
_REASONS = (
    (r"(?:is of type|input \S+:) ((?:seq|optional|map)\()", "refused: an input or output is no tensor"),
    (r"is of type tensor\((\w+)\), which no column", _TYPE),
    (r"input \S+: tensor\((\w+)\) .*cannot be filled", _TYPE),
    (r"no input of the model is filled", _NO_ROWS),
    (r"is a single value, no column", _NO_ROWS),
    (r"takes batches of no rows", _NO_ROWS),
    (r"scores of .* differ when the same rows are run again", "refused: scores are random"),
    (r"scores of .* change when rows stand", MIXED),
    (r"last bits of scores", "refused: last bits depend on the place of a row in a batch of an odd size"),
    (r"output \S+: has shape", "refused: an output has not one entry per row"),
    (r"^the model: ", FAILS),
)
"""Parts of our message, and what they say of the model; the first that is found counts."""


@dataclass(frozen=True)
class Verdict:
    """What became of one model."""

    name: str
    what: str
    message: str = ""


def cases() -> list[Any]:
    """Return the test cases for single operators: models in memory, with data."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # making their data overflows here and there
        found: list[Any] = load_model_tests(kind="node")
    return found


def verdicts(share: int = 1, only: str = "") -> Iterator[Verdict]:
    """Judge every `share`-th model, or those whose name is `only`."""
    for case in [c for c in cases() if c.name == only] if only else cases()[::share]:
        with tempfile.TemporaryDirectory() as folder:
            yield judged(case, Path(folder))
        model._sessions.clear()  # a fork of a process with a thousand takes long


def run(share: int = 1) -> Counter[str]:
    """Return how many of every `share`-th model got which verdict."""
    return Counter(verdict.what for verdict in verdicts(share))


def shortfalls(counts: Counter[str], share: int = 1) -> list[str]:
    """Return which bars the verdicts on every `share`-th model miss: nothing when all is well."""
    scored = counts[EQUAL] + counts[SET]
    missed = [
        (scored, LEAST_SCORED // share, "scored"),
        (counts[MIXED], LEAST_MIXED // share, "refused as mixing"),
    ]
    lines = [f"{has} models are {what}, {bar} are wanted" for has, bar, what in missed if has < bar]
    odd = [what for what in counts if what == OTHER or what.endswith("differs")]
    return lines + [f"{counts[what]} models: {what}" for what in odd]


def judged(case: Any, folder: Path) -> Verdict:
    """Score a model's own data through files; compare with onnxruntime called directly."""
    path = folder / "model.onnx"
    path.write_bytes(case.model.SerializeToString())
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(path, options)
    except Exception as error:  # noqa: BLE001  its classes share no base
        return Verdict(case.name, "onnxruntime does not load it", str(error))
    names = [port.name for port in session.get_inputs()]
    given = case.data_sets[0][0] if case.data_sets else []
    data = dict(zip(names, map(_array, given), strict=False))
    try:
        return Verdict(case.name, _scored(session, path, data, folder))
    except BatchserveError as error:
        what = _reason(error.message)
        if what == FAILS and _runs(session, data):
            what = OTHER
        return Verdict(case.name, what, str(error))


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _scored(session: Any, path: Path, data: dict[str, Any], folder: Path) -> str:
    """Score; inputs whose first dimension is not the batch are given with --set."""
    shapes = {port.name: port.shape for port in session.get_inputs()}
    tensors = {name: value for name, value in data.items() if isinstance(value, np.ndarray)}
    rows = next((len(value) for name, value in tensors.items() if shapes[name]), 1)
    batched = {n: value for n, value in tensors.items() if shapes[n] and len(value) == rows}
    rest = {n: value for n, value in tensors.items() if n not in batched}
    constants = {name: _json(value) for name, value in rest.items() if value.dtype.kind in "biufOU"}
    table = pa.table({name: _column(value) for name, value in batched.items() if _known(value)})
    if not table.num_columns:
        table = pa.table({"nothing": pa.nulls(rows, pa.float32())})
    pq.write_table(table, folder / "in.parquet")
    options: dict[str, Any] = {"model": path, "keep": "none", "prefix": "out_", "set": constants}
    receipt = bs.score(folder / "in.parquet", folder / "out.parquet", **options).receipt
    batch_rows = receipt.runs[-1].plan.recipe.batch_rows
    order = np.minimum(np.arange(batch_rows), rows - 1)
    given = {name: value[order] if name in batched else value for name, value in data.items()}
    direct = _direct(session, given)
    output = pq.read_table(folder / "out.parquet")
    for port, values in zip(session.get_outputs(), direct, strict=True):
        if not same(output.column(f"out_{port.name}"), values[:rows]):
            return f"scored, but {port.type} differs"
    return SET if constants else EQUAL


def _direct(session: Any, given: dict[str, Any]) -> list[Any]:
    """Run the model; bfloat16, which numpy lacks, comes out by onnxruntime's own values."""
    if all(port.type != "tensor(bfloat16)" for port in session.get_outputs()):
        found: list[Any] = session.run(None, given)
        return found
    import ml_dtypes

    feeds = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in given.items()}
    (value,) = session.run_with_ort_values(None, feeds)
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return [np.frombuffer(raw, ml_dtypes.bfloat16).astype(np.float32).reshape(value.shape())]


def _runs(session: Any, data: dict[str, Any]) -> bool:
    try:
        session.run(None, data)
    except Exception:  # noqa: BLE001  its classes share no base
        return False
    return True


def _known(value: Any) -> bool:
    return value.dtype.kind in "biufOU" and value.dtype.isbuiltin == 1


def _json(value: Any) -> str:
    return json.dumps(value.tolist())


def _column(value: Any) -> pa.Array:
    """Return a column of one entry per row: values, or lists nested as deep as the data."""
    if value.dtype.kind in "OU":
        return pa.array([*value.tolist()])
    kind = pa.from_numpy_dtype(value.dtype)
    if value.ndim == 1 or value.shape[1:] == (1,):
        return pa.array(value.reshape(-1), kind)
    flat = pa.array(value.reshape(-1), kind)
    for level in reversed(range(1, value.ndim)):
        count = int(np.prod(value.shape[:level]))
        offsets = np.arange(count + 1) * value.shape[level]
        flat = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
    return flat


def same(column: pa.ChunkedArray, expected: Any) -> bool:
    """Whether a column holds the values that onnxruntime gave, bit for bit."""
    if isinstance(expected, list):
        rows = column.to_pylist()
        return len(rows) == len(expected) and all(
            repr(row) == repr(value.tolist()) for row, value in zip(rows, expected, strict=True)
        )
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif pa.types.is_nested(array.type):
            array = array.flatten()
        else:
            break
    flat = expected.reshape(-1)
    if flat.dtype.kind in "OUb":
        return bool(array.to_pylist() == flat.tolist())
    got = array.to_numpy(zero_copy_only=False)
    return bool(got.dtype == flat.dtype and got.tobytes() == flat.tobytes())


def _reason(message: str) -> str:
    for pattern, what in _REASONS:
        if found := re.search(pattern, message):
            return what.format(*found.groups())
    return OTHER


def table(found: Sequence[Verdict]) -> str:
    """Return the verdicts as a table in Markdown: how many, which, for example."""
    names = defaultdict(list)
    for verdict in found:
        names[verdict.what].append(verdict.name.removeprefix("test_"))
    versions = f"onnx {onnx.__version__}, onnxruntime {ort.__version__}"
    lines = [f"{len(found):,} models of {versions}:", ""]
    lines += ["| models | what became of them | such as |", "| --- | --- | --- |"]
    for what, many in sorted(
        names.items(), key=lambda item: (not item[0].startswith("scored"), -len(item[1]))
    ):
        shown = ", ".join(f"`{name}`" for name in many[:: max(1, len(many) // 3)][:3])
        lines.append(f"| {len(many):,} | {what} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    everything = list(verdicts(only=only))
    for verdict in everything:
        if only or verdict.what == OTHER or "differs" in verdict.what:
            print(verdict.name, verdict.what, verdict.message, file=sys.stderr)
    print(table(everything))
    missed = [] if only else shortfalls(Counter(verdict.what for verdict in everything))
    raise SystemExit("\n".join(missed) or 0)
