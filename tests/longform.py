"""What the long forms of the tests share: parts that run one after another and print one table."""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Row = tuple[str, str | int]
Found = tuple[list[Row], list[str]]
"""Figures with their names, and what was broken."""


def run(parts: Mapping[str, Callable[[Path], Found]]) -> int:
    """Run parts, each in a folder of its own, and print the table; return 1 if a promise was broken."""
    broken = [fault for name, part in parts.items() for fault in _figures(name, part)]
    print("\n".join(["", *broken]) if broken else "\nno promise was broken")
    return bool(broken)


def _figures(name: str, part: Callable[[Path], Found]) -> list[str]:
    """Run one part and print its rows of the table."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        rows, broken = part(Path(home))
    for what, value in [*rows, ("minutes", f"{(time.monotonic() - started) / 60:.1f}")]:
        shown = f"{value:,}" if isinstance(value, int) else value
        print(f"{name:<12} {what:<50} {shown}", flush=True)
    return broken
