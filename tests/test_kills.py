"""SIGKILL at random moments to the real command: nothing is lost, and hardly anything is done twice."""

from pathlib import Path

import pytest

import kills


@pytest.mark.parametrize(("setup", "count"), [("threads", 15), ("cluster", 10)])
def test_kills_at_random_moments(setup: str, count: int, tmp_path: Path) -> None:
    """Whoever is killed, whenever: the same command ends with the same bytes, and nothing is left behind."""
    figures = kills.harass(tmp_path, count, seed=25, setups=(setup,))

    assert figures.faults == ()
    assert figures.kills >= count
    assert figures.outputs_compared == figures.jobs
    assert (figures.outputs_wrong, figures.left_behind) == (0, 0)
    assert figures.most_redone <= kills.WORKERS
