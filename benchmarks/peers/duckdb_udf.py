"""DuckDB: the model as a vectorised Arrow function, `COPY` into Parquet."""

import sys

import duckdb
import pyarrow as pa
from duckdb.sqltypes import DOUBLE, FLOAT, VARCHAR
from scoring import scores, session_of


def main(source: str, model: str, output: str) -> None:
    """Score `source` into `output`."""
    session = session_of(model)
    ports = session.get_inputs()
    names = [port.name for port in ports]

    def predict(*columns: pa.ChunkedArray) -> pa.Array:
        return pa.array(scores(session, pa.table(list(columns), names=names)))

    types = [VARCHAR if port.type == "tensor(string)" else DOUBLE for port in ports]
    connection = duckdb.connect()
    # DuckDB counts a function's parameters, so it must have as many as the model has inputs.
    counted = eval(f"lambda {', '.join(names)}: predict({', '.join(names)})", {"predict": predict})
    connection.create_function("predict", counted, types, FLOAT, type="arrow", null_handling="special")
    given = ", ".join(f'"{name}"' for name in names)
    rows = f"SELECT *, predict({given}) AS score FROM read_csv('{source}', nullstr='NA')"
    connection.sql(f"COPY ({rows}) TO '{output}' (FORMAT parquet, COMPRESSION snappy)")


if __name__ == "__main__":
    main(*sys.argv[1:])
