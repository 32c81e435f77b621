"""Polars: a lazy scan, the model as an elementwise batch function, streamed into Parquet."""

import sys

import polars as pl
from scoring import columns_of, scores, session_of


def main(source: str, model: str, output: str) -> None:
    """Score `source` into `output`."""
    session = session_of(model)

    def predict(rows: pl.Series) -> pl.Series:
        return pl.Series(scores(session, rows.struct.unnest().to_arrow(compat_level=pl.CompatLevel.oldest())))

    frame = pl.scan_csv(source, null_values=["NA"], infer_schema_length=10_000, try_parse_dates=True)
    scored = pl.struct(columns_of(session)).map_batches(predict, return_dtype=pl.Float32, is_elementwise=True)
    frame.with_columns(scored.alias("score")).sink_parquet(output, compression="snappy", engine="streaming")


if __name__ == "__main__":
    main(*sys.argv[1:])
