"""`python -m batchserve`."""

from batchserve.cli import run

run()
