# ruff: noqa: INP001, T201, BLE001, TID251  a script that prints, of models that fail as they like
"""Every classifier and regressor that can be had, exported: which pass the gate, which are refused, and why.

`python tests_extras/matrix.py [sklearn] [lightgbm] [xgboost] [catboost] [torch]` walks those that are
named, or all, in some minutes, and prints the tables of docs/export.md. What passes then scores rows
that the gate never saw: one that differs there is WRONG, and the exit code is 1. With `--flights` those
are 336,776 flights, and the models are fitted to 1,200 of them.
"""

import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import samples
from samples import NUMBERS, ROWS, SAMPLE, classes, mixed, numbers, values

import batchserve as bs
from batchserve import parity, sources
from batchserve.parity import Outputs
from batchserve.sources import Source

Make = Callable[[], Any]
ROUNDING = 1e-12
"""Of distances in float64: scaled columns make equal ones differ in their last bits."""


@dataclass(frozen=True)
class Found:
    """What became of one model."""

    word: str
    """`float32`, `float64` ...: passed in that; `refused`, `not fitted` or `WRONG`."""
    why: str = ""

    @property
    def passed(self) -> bool:
        """Whether it was exported and predicts unseen rows as its source does."""
        return self.word not in {"refused", "not fitted", "WRONG", "-"}

    def __str__(self) -> str:
        return f"{self.word}: {self.why}" if self.why else self.word


# -- one model ----------------------------------------------------------------------------------


def tried(make: Make, frame: pd.DataFrame) -> Found:
    """Fit and export one model, then compare both on rows that the gate never saw."""
    try:
        model = make()
    except Exception as error:
        return Found("not fitted", sources.reason(error))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.onnx")
        try:
            done = bs.export(model, path, sample=frame[:SAMPLE])
        except bs.BatchserveError as error:
            return Found("refused", _short(error))
        except Exception as error:
            return Found("BUG", sources.reason(error))
        try:
            rows, left_out = _without_ties(model, samples.unseen(frame))
            wrong = _unseen(sources.of_object(model), path, rows)
        except Exception as error:  # loud: nobody takes that for a score
            return Found(done.parity.computes_in, f"fails on rows unlike the sample ({_first(error)})")
    return Found("WRONG", wrong) if wrong else Found(done.parity.computes_in, left_out)


def _without_ties(model: Any, frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Leave out rows whose neighbours are equally far, of which any may count; say how many."""
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    last = getattr(model, "steps", [("", model)])[-1][1]
    if not isinstance(last, KNeighborsClassifier | KNeighborsRegressor):
        return frame, ""
    table = frame if last is model else model[:-1].transform(frame)
    far, _ = last.kneighbors(table, n_neighbors=last.n_neighbors + 1)
    tied = far[:, -1] - far[:, -2] <= ROUNDING * far[:, -1]
    why = f"but for {tied.sum():,} rows with neighbours equally far" if tied.any() else ""
    return frame[~tied].reset_index(drop=True), why


def _first(error: Exception) -> str:
    return sources.reason(error)[:60]


def _short(error: bs.BatchserveError) -> str:
    """Return the part of a refusal that says why."""
    lines = [line.strip() for line in error.message.splitlines()]
    reasons = [line for line in lines[1:] if ": the source gives" not in line] or lines[:1]
    best = next((line for line in reasons if "differ" in line), reasons[0])
    text = best.partition(": ")[2] if len(lines) > 1 else best
    return text.replace("|", "/")[:110]


def _unseen(source: Source, path: Path, frame: pd.DataFrame) -> str:
    """Return how far the scores of a job are from what the source predicts; empty if they agree."""
    rows = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(rows, path.with_name("in.parquet"))
    bs.score(path.with_name("in.parquet"), path.with_name("out.parquet"), model=path)
    scored = pq.read_table(path.with_name("out.parquet")).combine_chunks()
    expected = _predicted(source, rows.select(list(source.names or frame.columns[: source.width])))
    ours = {name: _array(scored[name].chunk(0)) for name in expected}
    gaps = parity.compared(Outputs(expected, len(frame)), Outputs(ours, len(frame)), {})
    return "; ".join(f"{name}: {gap}" for name, (gap, _) in gaps.items() if not gap.passes)


def _predicted(source: Source, rows: pa.Table) -> dict[str, np.ndarray[Any, Any]]:
    """Return what a source predicts, some rows at a time: kernels are as wide as what was fitted."""
    parts = [source.predict(batch) for batch in rows.combine_chunks().to_batches(max_chunksize=20_000)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _array(column: pa.Array) -> np.ndarray[Any, Any]:
    if pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.flatten()).reshape(len(column), -1)
    return np.asarray(column)


# -- scikit-learn -------------------------------------------------------------------------------

BINARY = {"FixedThresholdClassifier", "TunedThresholdClassifierCV", "GaussianProcessClassifier"}
SEVERAL = {"MultiOutputClassifier", "ClassifierChain", "MultiOutputRegressor", "RegressorChain"}
SMALL = {"PoissonRegressor", "GammaRegressor", "TweedieRegressor"}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "CCA": {"n_components": 1}, "PLSCanonical": {"n_components": 1}, "PLSRegression": {"n_components": 2},
    "RadiusNeighborsClassifier": {"radius": 50.0}, "RadiusNeighborsRegressor": {"radius": 50.0},
    "VotingClassifier": {"flatten_transform": False}, "QuadraticDiscriminantAnalysis": {"reg_param": 0.1},
    "HistGradientBoostingClassifier": {"max_iter": 10}, "HistGradientBoostingRegressor": {"max_iter": 10},
    "MLPClassifier": {"max_iter": 50}, "MLPRegressor": {"max_iter": 50},
}  # fmt: skip


def built(cls: Any, kind: str) -> Any:
    """Build an estimator small enough to be fitted in a moment; those that wrap others wrap simple ones."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    classifies = kind == "classifier"
    simple = LogisticRegression(max_iter=200) if classifies else Ridge()
    tree = DecisionTreeClassifier(max_depth=3) if classifies else DecisionTreeRegressor(max_depth=3)
    options = dict(ARGUMENTS.get(cls.__name__, {}))
    parameters = cls.__init__.__code__.co_varnames
    if "n_estimators" in parameters:
        options |= {"n_estimators": 10}
    if "estimators" in parameters:
        return cls([("simple", simple), ("tree", tree)], **options)
    if "estimator" in parameters and cls.__name__ not in {"BaggingClassifier", "BaggingRegressor"}:
        keep = {"AdaBoostClassifier", "AdaBoostRegressor", "RANSACRegressor"}
        return cls(**options) if cls.__name__ in keep else cls(simple, **options)
    model = cls(**options)
    if "random_state" in parameters:
        model.set_params(random_state=0)
    return model


def target(name: str, kind: str) -> Any:
    """Return what an estimator of this name can be fitted to."""
    if kind == "classifier":
        wanted = classes(2 if name in BINARY else 3)
    else:
        wanted = values() / 10 if name in SMALL else values()
    several = name in SEVERAL or name.startswith("MultiTask")
    return np.stack([wanted, wanted[::-1]], axis=1) if several else wanted


def columns(model: Any) -> Any:
    """Put a ColumnTransformer before a model: imputed and scaled numbers, one-hot texts."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import MinMaxScaler, OneHotEncoder

    counted = Pipeline([("impute", SimpleImputer()), ("scale", MinMaxScaler())])
    coded = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    parts = ColumnTransformer([("n", counted, NUMBERS), ("t", coded, ["colour", "place"])])
    return Pipeline([("columns", parts), ("model", model)])


def estimators() -> Iterator[tuple[str, Found, Found]]:
    """Export every classifier and regressor of scikit-learn, plain and behind a ColumnTransformer."""
    from sklearn.utils import all_estimators

    for kind in ("classifier", "regressor"):
        for name, cls in all_estimators(kind):
            wanted = target(name, kind)
            narrow = numbers()[["a"]] if name == "IsotonicRegression" else numbers()
            plain = tried(partial(fitted, cls, kind, narrow, wanted), narrow)
            behind = tried(partial(fitted, cls, kind, mixed(), wanted), mixed())
            yield name, plain, behind


def fitted(cls: Any, kind: str, frame: pd.DataFrame, wanted: Any) -> Any:
    """Fit an estimator; one that has texts or NaN to read stands behind a ColumnTransformer."""
    model = built(cls, kind)
    return (columns(model) if "colour" in frame else model).fit(frame, wanted)


# -- boosters -----------------------------------------------------------------------------------


def positive() -> Any:
    """Return numbers greater than 0."""
    return np.abs(values()) / 10 + 0.1


def lightgbm() -> Iterator[tuple[str, Found]]:
    """Export LightGBM in each objective, and its estimators; some values are missing."""
    import lightgbm as lgb

    frame = mixed()[NUMBERS]
    real = ("regression", "regression_l1", "huber", "fair", "quantile", "mape")
    wanted: dict[str, Any] = dict.fromkeys(real, values())
    wanted |= dict.fromkeys(("poisson", "gamma", "tweedie"), positive())
    wanted |= dict.fromkeys(("binary", "cross_entropy", "cross_entropy_lambda"), classes(2))
    wanted |= dict.fromkeys(("multiclass", "multiclassova", "lambdarank", "rank_xendcg"), classes(3))
    for objective, label in wanted.items():
        options = {"objective": objective, "verbose": -1, "num_threads": 2}
        options |= {"num_class": 3} if objective.startswith("multi") else {}
        group = [ROWS // 10] * 10 if "rank" in objective else None
        data = lgb.Dataset(frame, label, group=group)
        yield f"Booster, {objective}", tried(partial(lgb.train, options, data, 20), frame)
    for cls, label in ((lgb.LGBMClassifier, classes(3)), (lgb.LGBMRegressor, values())):
        model = cls(n_estimators=50, verbose=-1, n_jobs=2)
        yield cls.__name__, tried(partial(model.fit, frame, label), frame)
    rows = frame.assign(d=frame["d"].astype("category"))
    model = lgb.LGBMRegressor(n_estimators=5, verbose=-1, min_data_per_group=1)
    yield "LGBMRegressor, categories", tried(lambda: model.fit(rows, values()), frame)


def xgboost() -> Iterator[tuple[str, Found]]:
    """Export XGBoost in each objective, and its estimators; some values are missing."""
    import xgboost as xgb

    frame = mixed()[NUMBERS]
    real = ("reg:squarederror", "reg:pseudohubererror", "reg:absoluteerror", "reg:quantileerror")
    wanted: dict[str, Any] = dict.fromkeys(real, values())
    counts = ("reg:squaredlogerror", "count:poisson", "reg:gamma", "reg:tweedie")
    wanted |= dict.fromkeys((*counts, "survival:cox", "survival:aft"), positive())
    halves = ("reg:logistic", "binary:logistic", "binary:logitraw", "binary:hinge", "rank:map")
    wanted |= dict.fromkeys(halves, classes(2))
    wanted |= dict.fromkeys(("multi:softmax", "multi:softprob", "rank:ndcg", "rank:pairwise"), classes(3))
    for objective, label in wanted.items():
        yield f"Booster, {objective}", tried(partial(_xgb, objective, frame, label), frame)
    made = (
        (xgb.XGBClassifier, classes(3)), (xgb.XGBRegressor, values()), (xgb.XGBRFClassifier, classes(2)),
        (xgb.XGBRFRegressor, values()),
    )  # fmt: skip
    for cls, label in made:
        yield cls.__name__, tried(partial(cls(n_estimators=50, n_jobs=2).fit, frame, label), frame)
    for booster in ("dart", "gblinear"):
        model = xgb.XGBRegressor(n_estimators=20, booster=booster, n_jobs=2)
        whole = frame.fillna(0)
        yield f"XGBRegressor, {booster}", tried(partial(model.fit, whole, values()), whole)


def _xgb(objective: str, frame: pd.DataFrame, label: Any) -> Any:
    import xgboost as xgb

    options: dict[str, Any] = {"objective": objective, "nthread": 2}
    options |= {"num_class": 3} if objective.startswith("multi") else {}
    options |= {"quantile_alpha": 0.3} if "quantile" in objective else {}
    data = xgb.DMatrix(frame, label)
    if "rank" in objective:
        data.set_group([ROWS // 10] * 10)
    if objective == "survival:aft":
        data.set_float_info("label_lower_bound", label)
        data.set_float_info("label_upper_bound", label)
    return xgb.train(options, data, 20)


def catboost() -> Iterator[tuple[str, Found]]:
    """Export CatBoost's estimators; some values are missing."""
    import catboost as cat

    frame = mixed()[NUMBERS]
    made = (
        ("CatBoostRegressor", cat.CatBoostRegressor, values()),
        ("CatBoostClassifier, 2 classes", cat.CatBoostClassifier, classes(2)),
        ("CatBoostClassifier, 3 classes", cat.CatBoostClassifier, classes(3)),
        ("CatBoostRegressor, Quantile", partial(cat.CatBoostRegressor, loss_function="Quantile"), values()),
    )
    for name, cls, label in made:
        model = cls(iterations=20, verbose=0, thread_count=2, allow_writing_files=False)
        yield name, tried(partial(model.fit, frame, label), frame)
    rows = frame.assign(d=frame["d"].astype(str))
    model = cat.CatBoostRegressor(iterations=5, verbose=0, cat_features=["d"], allow_writing_files=False)
    yield "CatBoostRegressor, categories", tried(lambda: model.fit(rows, values()), rows)


# -- torch --------------------------------------------------------------------------------------


def torch() -> Iterator[tuple[str, Found]]:
    """Export modules of torch: of columns of numbers, and of one column of lists."""
    import nets
    import torch as library
    from torch import nn

    library.manual_seed(0)
    narrow = {
        "linear regression": nn.Linear(4, 1),
        "perceptron, ReLU": nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1)),
        "LayerNorm, GELU, softmax": nn.Sequential(
            nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3), nn.Softmax(1)
        ),
        "BatchNorm, dropout, sigmoid": nn.Sequential(
            nn.BatchNorm1d(4), nn.Linear(4, 6), nn.Dropout(), nn.Sigmoid(), nn.Linear(6, 1), nn.Flatten(0)
        ),
        "SiLU, RMSNorm": nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.RMSNorm(4), nn.Linear(4, 2)),
        "two outputs": nets.Two(),
        "mean of the batch": nets.Mixer(),
    }
    for name, module in narrow.items():
        yield name, tried(lambda module=module: module, numbers())  # type: ignore[misc]  # a default of a lambda
    for name, module in {
        "LSTM": nets.Recurrent(),
        "transformer layer": nets.Attention(),
        "convolution": nets.image(),
    }.items():
        yield f"{name}, a column of lists", tried(lambda module=module: module, samples.lists("steps"))  # type: ignore[misc]  # as above
    yield "embedding, a column of lists", tried(nets.Words, samples.lists("tokens"))


# -- tables -------------------------------------------------------------------------------------

PARTS: Mapping[str, Callable[[], Iterator[tuple[Any, ...]]]] = {
    "sklearn": estimators, "lightgbm": lightgbm, "xgboost": xgboost, "catboost": catboost,
    "torch": torch,
}  # fmt: skip
HEADS = {"sklearn": ("estimator", "plain", "behind a ColumnTransformer")}


def main(wanted: list[str]) -> int:
    """Print a table for each part; return 1 if anything is wrong."""
    warnings.simplefilter("ignore")
    if "--flights" in wanted:
        samples.data = samples.flights
    parts = [part for part in wanted if part in PARTS] or PARTS
    return int(sum(walked(part) for part in parts) > 0)


def walked(part: str) -> int:
    """Print the table of one part, what passes in float32 both ways below it; return how many are wrong."""
    head = HEADS.get(part, ("model", "exported"))
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}", flush=True)
    found: list[Found] = []
    easy = []
    for name, *cells in PARTS[part]():
        found += cells
        if len(cells) > 1 and all(str(each) == "float32" for each in cells):
            easy.append(f"`{name}`")
        else:
            print(f"| `{name}` | {' | '.join(map(str, cells))} |", flush=True)
    if easy:
        print("\n" + textwrap.fill(f"In float32, {' and '.join(head[1:])}: {', '.join(easy)}.", 112))
    passed = sum(each.passed for each in found)
    wrong = sum(each.word in {"WRONG", "BUG"} for each in found)
    counts = f"{passed} pass the gate, {len(found) - passed} do not; {wrong} are wrong"
    print(f"\n{sources.versions(part)}: {counts}.\n", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
