"""`python -m batchserve`."""

from batchserve.cli import main

main()
