"""The long forms of what proves that nothing is lost; prints one table of figures.

    python tests/soak.py                # all of it: hours
    python tests/soak.py --share 0.01   # a hundredth of each
    python tests/soak.py kills flips    # some

Exits with 1 if a promise was broken.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import faults
import flips
import kills
import simulator

HISTORIES = 500_000
KILLS = 500
FLIPS = 50_000
Row = tuple[str, str | int]


def simulate(home: Path, share: float) -> tuple[list[Row], list[str]]:
    """Explore histories of crashes, two deep, on a simulated disk."""
    found = simulator.explore(simulator.planned(home), int(HISTORIES * share), losses=20)
    rows: list[Row] = [
        ("crash histories simulated", found.histories),
        ("promises broken", len(found.violations)),
    ]
    return rows, [f"{what}: {count}" for what, count in found.violations.items()]


def kill(home: Path, share: float) -> tuple[list[Row], list[str]]:
    """Kill drivers, workers, nannies and schedulers at random moments."""
    found = kills.harass(home, max(2, int(KILLS * share)), seed=int(time.time()))
    return list(found.facts().items()), list(found.faults)


def fail(home: Path, share: float) -> tuple[list[Row], list[str]]:
    """Let every call to the disk fail once, in every way."""
    found = faults.sweep(home, step=max(1, round(1 / share)))
    return list(found.facts().items()), list(found.violations)


def flip(home: Path, share: float) -> tuple[list[Row], list[str]]:
    """Flip single bits in every kind of file."""
    found = flips.sweep(flips.material(home), int(FLIPS * share), seed=1)
    return list(found.facts().items()), found.missed


PARTS: dict[str, Callable[[Path, float], tuple[list[Row], list[str]]]] = {
    "histories": simulate, "kills": kill, "faults": fail, "flips": flip,
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Run the parts named, print the table, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which [default: all]")
    parser.add_argument("--share", type=float, default=1.0, help="of the long form [default: 1]")
    asked = parser.parse_args(arguments)
    broken = []
    for name in asked.parts or PARTS:
        broken += _part(name, asked.share)
    print("\n".join(["", *broken]) if broken else "\nno promise was broken")
    return bool(broken)


def _part(name: str, share: float) -> list[str]:
    """Run one part and print its rows of the table."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        rows, broken = PARTS[name](Path(home), share)
    for what, value in [*rows, ("minutes", f"{(time.monotonic() - started) / 60:.1f}")]:
        shown = f"{value:,}" if isinstance(value, int) else value
        print(f"{name:<10} {what:<44} {shown}", flush=True)
    return broken


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
