"""What a job would do, in words for people: its plan, and where the rows would go."""

import numpy as np
import pyarrow as pa

from batchserve import workspace
from batchserve.binding import Feed
from batchserve.casts import exact_integers, number_dtype
from batchserve.inputs import SOURCE_FILE, SOURCE_ROW, cutting
from batchserve.modelfile import ModelSpec
from batchserve.planning import Plan
from batchserve.recipes import usual_rows
from batchserve.report import human_bytes, shortest
from batchserve.scorers import Scorer
from batchserve.target import Target


def plan_facts(made: Plan) -> dict[str, str]:
    """Return what a plan will do, as words for people."""
    recipe = made.recipe
    size = sum(source.size_bytes for source in made.sources)
    facts = {"inputs": f"{len(made.sources):,} file{'s' * (len(made.sources) != 1)}, {human_bytes(size)}"}
    facts |= _written(made)
    facts |= {
        **{f"model {each.name}".rstrip(): _model(each.model) for each in recipe.scorers},
        "partitions": f"{len(made.partitions):,} of about "
        f"{human_bytes(made.bytes_total // max(1, len(made.partitions)))}",
        "batch rows": _batch_rows(made),
    }
    for scorer in recipe.scorers:
        facts |= _taken(scorer, made)
    kept = f"{len(recipe.keep)} of {len(recipe.reading.schema_)} input columns pass through"
    for scorer in recipe.scorers:
        facts |= {f"out {scorer.label(p.output)}": _given_as(p.column, made) for p in scorer.predictions}
    facts |= _added(made) | {f"drift {i}": line for i, line in enumerate(made.drift, 1)}
    return facts | {"keeps": kept, "rows": _independence(made), "plan id": made.plan_id}


def _model(spec: ModelSpec) -> str:
    return f"{shortest(spec.path)} (sha256 {spec.sha256[:12]})"


def _batch_rows(made: Plan) -> str:
    recipe = made.recipe
    fixed = [each for each in recipe.scorers if each.binding.fixed_batch]
    if len(fixed) == len(recipe.scorers) == 1:
        return f"{recipe.batch_rows:,} in every run of the model, fixed in the model"
    every = f"{recipe.batch_rows:,} in every run of the model{_lowered(made)}"
    own = [f"{each.name} takes {each.binding.fixed_batch:,}, fixed in the model" for each in fixed]
    return "; ".join([every, *own])


def _taken(scorer: Scorer, made: Plan) -> dict[str, str]:
    """Return what the inputs of a model are filled with."""
    binding = scorer.binding
    fed = {f"in  {scorer.label(feed.input)}": _fed(feed, made) for feed in binding.feeds}
    return fed | {f"in  {scorer.label(each.input)}": f"{each}, in every run" for each in binding.constants}


def _written(made: Plan) -> dict[str, str]:
    """Return how text files are written, where there is something to say of it."""
    form = made.sources[0].format if made.sources else "parquet"
    encoding = made.dialect.dialect.encoding
    if form == "csv":
        return {"dialect": str(made.dialect)}
    return {"encoding": encoding} if encoding != "utf-8" else {}


def dialect_note(made: Plan) -> str | None:
    """Return what people should know of how the files were read, if anything."""
    if not made.sources or made.sources[0].format != "csv" or not made.dialect.doubtful:
        return None
    return f"{shortest(made.sources[0].path)} is read with {made.dialect}"


def _added(made: Plan) -> dict[str, str]:
    """Return which columns rows get besides those of their files."""
    schema = made.recipe.reading.schema_
    facts = {}
    if names := [name for name in made.added if name not in {SOURCE_FILE, SOURCE_ROW}]:
        facts["folders"] = (
            ", ".join(f"{name} ({schema.field(name).type})" for name in names) + " by their names"
        )
    if SOURCE_ROW in made.added:
        read = len(cutting.counted(made.partitions))
        once = (
            f"; {read:,} text file{'s' * (read != 1)} of several partitions read once more, to count records"
        )
        facts["adds"] = f"{SOURCE_FILE}, {SOURCE_ROW}{once if read else ''}"
    return facts


def _lowered(made: Plan) -> str:
    anyhow = [each for each in made.recipe.scorers if not each.binding.fixed_batch]
    if not anyhow:
        return ""
    usual = usual_rows(anyhow)
    lowered = made.batch_rows_asked is None and made.recipe.batch_rows < usual
    return f": {usual:,} would not fit into memory" if lowered else ""


def target_facts(found: Target, made: Plan) -> dict[str, str]:
    """Return where the rows would go and what an earlier run left there, as words for people."""
    facts = {"output": f"{shortest(str(found.path))} ({'a dataset folder' if found.dataset else 'one file'})"}
    left = workspace.left(found, made)
    return facts | ({"workspace": left} if left else {})


def _fed(feed: Feed, made: Plan) -> str:
    schema = made.recipe.reading.schema_
    fed = [
        f"{name} ({schema.field(name).type}, null: {policy})"
        for name, policy in zip(feed.columns, feed.nulls, strict=True)
    ]
    kind = "text" if feed.dtype == "object" else feed.dtype
    row = f" {list(feed.shape)}" if feed.packed else ""
    altered = dict.fromkeys(_altered(schema.field(name).type, feed) for name in feed.columns)
    return "; ".join([f"{kind}{row} from {', '.join(fed)}", *filter(None, altered)])


def _altered(kind: pa.DataType, feed: Feed) -> str:
    """Say what a cast to the input's type may change, if anything."""
    if (source := number_dtype(kind)) is None or feed.dtype == "object":
        return ""
    target = np.dtype(feed.dtype)
    if exact := exact_integers(source, target):
        return f"{source.name} past {exact:,} loses digits"
    if target.kind == "f" and source.kind == "f" and source.itemsize > target.itemsize:
        return f"{source.name} is rounded to {target.name}"
    if not np.can_cast(source, target):
        return f"{source.name} that is no {target.name} is a reject"
    return ""


def _given_as(column: str, made: Plan) -> str:
    return f"column {column} ({made.recipe.schema_.field(column).type})"


def _independence(made: Plan) -> str:
    if made.recipe.rows_depend:
        return "may depend on each other (--rows-depend): scores hold for this batch size only"
    bits = "; a run halved for want of memory would give other last bits"
    return f"independent: proven on the first rows{bits if made.recipe.size_matters else ''}"
