"""ONNX models as they are: what is made of them is held to what they themselves score."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from batchserve import binding, rehearsal, surgery
from batchserve.errors import ModelError, raise_all
from batchserve.model import Port, Signature, Tensor, element, session_for
from batchserve.modelfile import identify
from batchserve.scorers import Recipe
from batchserve.sources import Candidate, kinds

if TYPE_CHECKING:
    import onnx


def of_file(path: Path) -> "Model":
    """Open an ONNX model.

    Raises:
        ModelError: It is damaged, takes a fixed number of rows, or gives what is no tensor.
    """
    signature = session_for(identify(str(path))).signature()
    if signature.fixed_batch is not None:
        message = f"{path}: takes exactly {signature.fixed_batch} rows at once"
        raise ModelError(message, "export it with an open batch dimension")
    maps = [port for port in signature.outputs if not port.type.startswith("tensor(")]
    hint = "export it without ZipMap (options={'zipmap': False})"
    raise_all([ModelError(f"{path}: output {port} is no tensor", hint) for port in maps])
    return Model(path, signature)


@dataclass(frozen=True)
class Model:
    """An ONNX model that `score` can run."""

    path: Path
    signature: Signature
    recipes: dict[str, Recipe] = field(default_factory=dict, compare=False)
    """How it is run, by the schema of the rows."""

    @property
    def made_with(self) -> str:
        """Its file's name, and what wrote it."""
        producer = self.signature.metadata.get("producer", "")
        return f"{self.path.name}{f' by {producer}' if producer else ''}"

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that its inputs take; none where it has one wide input and does not know them."""
        inputs = self.signature.inputs
        if len(inputs) == 1 and _is_wide(inputs[0]) and not binding.stored_features(self.signature):
            return ()
        return tuple(binding.wanted_columns(self.signature, binding.Wish()))

    @property
    def width(self) -> int | None:
        """Nothing: one column of lists may fill a wide input."""
        return None

    @property
    def instead(self) -> str:
        """Nothing is known beforehand."""
        return ""

    def predict(self, rows: pa.RecordBatch) -> Mapping[str, Tensor]:
        """Return what `score` gives for rows.

        Raises:
            ModelError: It would reject one.
        """
        recipe = self._recipe(rows)
        if rehearsal.scorable(rows, recipe)[1]:
            raise ModelError("a row would be rejected", "docs/rejects.md says why")
        return rehearsal.scores(rows, recipe)

    def _recipe(self, rows: pa.RecordBatch) -> Recipe:
        key = rows.schema.to_string()
        if key not in self.recipes:
            nan = all(element(port) in _WITH_NAN for port in self.signature.inputs)
            columns = self._wide_columns(rows)
            self.recipes[key] = rehearsal.rehearsed(self.path, rows, nan=nan, features=columns)
        return self.recipes[key]

    def _wide_columns(self, rows: pa.RecordBatch) -> tuple[str, ...]:
        """Return the columns of its one wide input, unless lists fill it."""
        wide = len(self.signature.inputs) == 1 and _is_wide(self.signature.inputs[0])
        return tuple(rows.schema.names) if wide and "list" not in kinds(rows.schema).values() else ()

    def candidates(self, rows: pa.RecordBatch) -> Iterator[Candidate]:
        """Give the model itself."""
        yield Candidate("its own types", partial(_loaded, self.path), self._wide_columns(rows))


_WITH_NAN = {"float", "double", "float16", "string"}


def _is_wide(port: Port) -> bool:
    return len(port.shape) > 1 and port.shape[1:] != (1,)


def _loaded(path: Path) -> "onnx.ModelProto":
    """Read the graph; what an earlier export noted of itself is left out, as it will be noted anew."""
    import onnx

    graph = onnx.load(path)
    weights = {each.name for each in graph.graph.initializer}
    surgery.replace(graph.graph.input, [port for port in graph.graph.input if port.name not in weights])
    notes = [each for each in graph.metadata_props if not each.key.startswith("batchserve.")]
    surgery.replace(graph.metadata_props, notes)
    return graph
