"""Features of the flights with Dask: one file of departures to rows to fit and rows held out."""

import argparse
from pathlib import Path

import dask.dataframe as dd
import pandas as pd

COLUMNS = ["dep_delay", "distance", "minute_of_day", "weekday", "departures", "carrier_delay"]
LABEL = "arr_delay"
LAST_DAY_FITTED = 24  # of each month
HOUR = ["month", "day", "hour", "origin"]
READ = dict.fromkeys(["year", "month", "day", "hour", "minute"], "int64")
READ |= dict.fromkeys(["dep_delay", "arr_delay", "distance"], "float64")
READ |= {"carrier": "string", "origin": "string"}


def with_features(table: dd.DataFrame) -> dd.DataFrame:
    """Add the features: two sums over all partitions, then each partition for itself."""
    departures = table.groupby(HOUR).size().rename("departures").reset_index()
    fitted = table[table.day <= LAST_DAY_FITTED]  # a mean of labels may not see what is held out
    delays = fitted.groupby("carrier")[LABEL].mean().rename("carrier_delay").reset_index()
    return table.map_partitions(_joined, departures.compute(), delays.compute())


def _joined(part: pd.DataFrame, departures: pd.DataFrame, delays: pd.DataFrame) -> pd.DataFrame:
    part = part.merge(departures, on=HOUR, how="left").merge(delays, on="carrier", how="left")
    part["minute_of_day"] = 60 * part["hour"] + part["minute"]
    part["weekday"] = pd.to_datetime(part[["year", "month", "day"]]).dt.day_of_week
    return part.astype(dict.fromkeys(COLUMNS, "float32"))  # what the models compute in


def write(csv: Path, rows: int | None = None) -> dd.DataFrame:
    """Write `fitted/` and `held_out/` to the current folder, and return the first.

    A flight that never left has no delay to predict: it is in neither.

    Args:
        csv: All flights, as `../flights/make_full.py` writes them.
        rows: About how many to use, evenly spread; all by default.
    """
    table = dd.read_csv(csv, usecols=list(READ), dtype=READ, blocksize="4MB")
    table = with_features(table).dropna(subset=["dep_delay"])
    if rows:
        every = max(1, len(table) // rows)
        table = table.map_partitions(lambda part: part.iloc[::every])
    early = table.day <= LAST_DAY_FITTED
    kept = [*COLUMNS, LABEL, "carrier", "origin"]
    table[early][kept].dropna(subset=[LABEL]).to_parquet("fitted", write_index=False, overwrite=True)
    table[~early][kept].to_parquet("held_out", write_index=False, overwrite=True)
    return dd.read_parquet("fitted")


def asked(what: str) -> argparse.Namespace:
    """Read the command line of an example."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("flights", type=Path, help="CSV file that ../flights/make_full.py writes")
    parser.add_argument("--rows", type=int, help="use about this many flights instead of all")
    return parser.parse_args()
