"""Daft: a class whose batch method is the model, one instance per core."""

import sys
from typing import Any

import daft
import pyarrow as pa
from scoring import columns_of, scores, session_of

SOURCE, MODEL, OUTPUT = sys.argv[1:]


@daft.cls(max_concurrency=2)
class Model:
    """The session, and its input columns in order."""

    def __init__(self) -> None:
        self.session = session_of(MODEL)
        self.names = columns_of(self.session)

    @daft.method.batch(return_dtype=daft.DataType.float32(), batch_size=131_072)
    def predict(self, *columns: daft.Series) -> Any:
        """Score a batch."""
        table = pa.table([column.to_arrow() for column in columns], names=self.names)
        return pa.array(scores(self.session, table))


def main() -> None:
    """Score the source into a folder of Parquet files."""
    frame = daft.read_csv(SOURCE)
    names = columns_of(session_of(MODEL))
    texts = {"carrier", "origin", "dest"}
    given = [
        daft.col(n) if n in texts else daft.functions.when(daft.col(n).cast(daft.DataType.string()) == "NA",
            daft.lit(None)).otherwise(daft.col(n)).cast(daft.DataType.float64())
        for n in names
    ]  # fmt: skip
    frame.with_column("score", Model().predict(*given)).write_parquet(OUTPUT, compression="snappy")


if __name__ == "__main__":
    main()
