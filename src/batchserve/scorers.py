"""What a worker must know: the models of a job, and the recipe that they are part of."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from batchserve import effort
from batchserve.binding import Binding
from batchserve.effort import Effort
from batchserve.inputs import ArrowSchema, Reading
from batchserve.model import session_for
from batchserve.modelfile import ModelSpec
from batchserve.nulls import NullPolicy
from batchserve.predictions import Prediction
from batchserve.runs import Runs


class Scorer(BaseModel, frozen=True):
    """One model of a job: how columns reach it, and the columns that it gives."""

    name: str = ""
    """What its columns begin with; nothing for a model without a name."""
    model: ModelSpec
    binding: Binding
    predictions: tuple[Prediction, ...]
    effort: Effort = effort.NONE
    """What the model is taken to need for a row."""
    size_matters: bool = False
    """Whether bits of scores were seen to depend on how many rows a run has."""

    def label(self, port: str) -> str:
        """Return the name of an input or output, with that of the model before it if it has one."""
        return f"{self.name}.{port}" if self.name else port

    def moved(self, path: str) -> "Scorer":
        """Return the same model, its file elsewhere."""
        return self.model_copy(update={"model": self.model.model_copy(update={"path": path})})

    def on_threads(self, intra_op: int) -> "Scorer":
        """Return the same model, so many threads in every run."""
        return self.model_copy(update={"model": self.model.model_copy(update={"intra_op": intra_op})})

    def opened(self, timeout_s: float | None = None, kind: type[Runs] = Runs) -> Runs:
        """Return what runs the model: it knows the inputs that no column fills.

        Raises:
            ModelError: The file is not the model that was planned, or cannot be run.
        """
        binding = self.binding
        fixed = binding.fixed_batch is not None
        return kind(session_for(self.model), timeout_s, binding.constant_tensors, fixed=fixed)


class Recipe(BaseModel):
    """Everything a worker must know to turn any partition into the same bytes."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    scorers: tuple[Scorer, ...]
    """The models, in the order of their columns."""
    reading: Reading
    keep: tuple[str, ...]
    """Input columns that pass through, in input order."""
    schema_: ArrowSchema
    """The output: kept columns, then predictions."""
    coded: tuple[str, ...] = ()
    """Columns of the output that are written with a dictionary."""
    batch_rows: int
    """Rows of every single run of a model, unless its own number is fixed; short ones are padded."""
    limit: int | None = None
    """Records to read, or None for all."""
    rows_depend: bool = False
    """Whether rows may change each other's scores: then none can be left out of a run."""
    on_nonfinite: Literal["keep", "reject"] = "keep"
    """What becomes of a row whose score is infinite or not a number."""
    row_bytes: int = 0
    """What a row of the output takes in memory, by the first rows."""

    def rows_of(self, scorer: Scorer) -> int:
        """Return the rows of every run of one of the models."""
        return scorer.binding.fixed_batch or self.batch_rows

    @property
    def predictions(self) -> tuple[Prediction, ...]:
        """The predictions of all models."""
        return tuple(each for scorer in self.scorers for each in scorer.predictions)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that a model reads, once, in order of first use."""
        return tuple(dict.fromkeys(name for scorer in self.scorers for name in scorer.binding.columns))

    @property
    def null_rules(self) -> dict[str, NullPolicy]:
        """What a null becomes, per column: where one model rejects it, the row is a reject."""
        found: dict[str, NullPolicy] = {}
        for scorer in self.scorers:
            for name, rule in scorer.binding.null_rules.items():
                if name not in found or found[name].rule != "reject":
                    found[name] = rule
        return found

    @property
    def effort(self) -> Effort:
        """What all models together are taken to need for a row."""
        efforts = [scorer.effort for scorer in self.scorers]
        return Effort(sum(each.seconds for each in efforts), max(each.widest_bytes for each in efforts))

    @property
    def size_matters(self) -> bool:
        """Whether bits of some model's scores were seen to depend on how many rows a run has."""
        return any(scorer.size_matters for scorer in self.scorers)

    @property
    def digests(self) -> dict[str, str]:
        """The sha256 of every model, under its name."""
        return {scorer.name: scorer.model.sha256 for scorer in self.scorers}

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write a model without a name as plans did before there could be several: ids stay."""
        content: dict[str, Any] = write(self)
        if self.scorers[0].name:
            return content
        (only,) = content.pop("scorers")
        content |= only
        return {name: content[name] for name in _FLAT}

    @model_validator(mode="before")
    @classmethod
    def _read(cls, content: Any) -> Any:
        if not isinstance(content, Mapping) or "scorers" in content:
            return content
        only = {name: content[name] for name in content if name in Scorer.model_fields}
        return {name: content[name] for name in content if name not in only} | {"scorers": [only]}


_FLAT = (
    "model", "reading", "binding", "predictions", "keep", "schema_", "coded", "batch_rows", "limit",
    "rows_depend", "on_nonfinite", "effort", "size_matters", "row_bytes",
)  # fmt: skip
"""The order in which a recipe of one model is written."""
