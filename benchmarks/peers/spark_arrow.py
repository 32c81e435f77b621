"""Spark: `mapInArrow`, the session made once for each Python worker."""

import sys
from collections.abc import Iterator

import pyarrow as pa
from pyspark.sql import SparkSession
from scoring import scores, session_of


def main(source: str, model: str, output: str) -> None:
    """Score `source` into a folder of Parquet files."""
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "4g")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "131072")
        .getOrCreate()
    )
    rows = spark.read.csv(source, header=True, inferSchema=True, nullValue="NA")

    def predict(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        session = session_of(model)
        for batch in batches:
            yield batch.append_column("score", pa.array(scores(session, batch)))

    schema = f"{rows.schema.simpleString()[7:-1].replace(':', ' ')}, score float"
    rows.mapInArrow(predict, schema).write.parquet(output, compression="snappy")


if __name__ == "__main__":
    main(*sys.argv[1:])
