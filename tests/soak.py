"""The long forms of what proves that nothing is lost; prints one table of figures.

    python tests/soak.py                # all of it: hours
    python tests/soak.py --share 0.01   # a hundredth of each
    python tests/soak.py kills flips    # some

Exits with 1 if a promise was broken.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import faults
import flips
import kills
import longform
import simulator
from longform import Found, Row

HISTORIES = 500_000
KILLS = 500
FLIPS = 50_000


def simulate(home: Path, share: float) -> Found:
    """Explore histories of crashes, two deep, on a simulated disk."""
    found = simulator.explore(simulator.planned(home), int(HISTORIES * share), losses=20)
    rows: list[Row] = [
        ("crash histories simulated", found.histories),
        ("promises broken", len(found.violations)),
    ]
    return rows, [f"{what}: {count}" for what, count in found.violations.items()]


def kill(home: Path, share: float) -> Found:
    """Kill drivers, workers, nannies and schedulers at random moments."""
    found = kills.harass(home, max(2, int(KILLS * share)), seed=int(time.time()))
    return list(found.facts().items()), list(found.faults)


def fail(home: Path, share: float) -> Found:
    """Let every call to the disk fail once, in every way."""
    found = faults.sweep(home, step=max(1, round(1 / share)))
    return list(found.facts().items()), list(found.violations)


def flip(home: Path, share: float) -> Found:
    """Flip single bits in every kind of file."""
    found = flips.sweep(flips.material(home), int(FLIPS * share), seed=1)
    return list(found.facts().items()), found.missed


PARTS: dict[str, Callable[..., Found]] = {
    "histories": simulate, "kills": kill, "faults": fail, "flips": flip,
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Run the parts named, print the table, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which [default: all]")
    parser.add_argument("--share", type=float, default=1.0, help="of the long form [default: 1]")
    asked = parser.parse_args(arguments)
    names = asked.parts or PARTS
    return longform.run({name: partial(PARTS[name], share=asked.share) for name in names})


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
