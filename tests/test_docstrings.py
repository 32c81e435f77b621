"""Every example in a docstring runs and prints what it says."""

import doctest
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest

import batchserve

EXAMPLES = Path(__file__).parents[1] / "examples"
MODULES = [
    m.name for m in pkgutil.walk_packages(batchserve.__path__, "batchserve.") if "__main__" not in m.name
]


@pytest.mark.parametrize("name", ["batchserve", *MODULES])
def test_the_examples_of_a_module_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples in a module's docstrings give the output that stands below them."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)

    result = doctest.testmod(import_module(name))

    assert result.failed == 0


def test_there_are_examples() -> None:
    """The finder does find them: a package without any would pass the test above."""
    finder = doctest.DocTestFinder()
    examples = [test for name in MODULES for test in finder.find(import_module(name)) if test.examples]

    assert len(examples) >= 15
