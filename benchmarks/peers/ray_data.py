"""Ray Data: `map_batches` over Arrow blocks, the model in an actor per core."""

import sys
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import ray
from scoring import scores, session_of


class Model:
    """The session of one actor."""

    def __init__(self, path: str) -> None:
        self.session = session_of(path)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score a batch."""
        return table.append_column("score", pa.array(scores(self.session, table)))


def main(source: str, model: str, output: str) -> None:
    """Score `source` into a folder of Parquet files."""
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    nulls: Any = pacsv.ConvertOptions(null_values=["", "NA"])
    rows = ray.data.read_csv(source, convert_options=nulls)
    scored = rows.map_batches(
        Model, fn_constructor_args=(model,), batch_format="pyarrow", batch_size=131_072, concurrency=1,
        zero_copy_batch=True,
    )  # fmt: skip
    scored.write_parquet(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
