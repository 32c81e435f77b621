"""The notebook runs from top to bottom, and what it shows is what it says."""

import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run the notebook in a copy of the examples."""
    folder = tmp_path_factory.mktemp("notebook") / "examples"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    read = nbformat.read(folder / "notebook.ipynb", as_version=4)
    client = NotebookClient(
        read, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


def shown(notebook: Any, last_line: str) -> dict[str, str]:
    """Return the outputs of the cell that ends with a line, by MIME type."""
    cell = next(c for c in notebook.cells if c.source.splitlines()[-1] == last_line)
    return dict(cell.outputs[-1].get("data", {"text/plain": cell.outputs[-1].get("text", "")}))


def test_report(notebook: Any) -> None:
    """The report is a table in the notebook."""
    page = shown(notebook, "report")["text/html"]

    assert "<td style='text-align:left'>5,027</td>" in page


def test_plan(notebook: Any) -> None:
    """The plan is a table in the notebook, with what fills each input."""
    page = shown(notebook, "preview")["text/html"]

    assert "float32 from dep_delay (int64, null: nan)" in page


def test_mistake(notebook: Any) -> None:
    """The mistake it makes on purpose is explained."""
    assert "did you mean dep_delay?" in shown(notebook, "    print(error)")["text/plain"]


def test_same_scores(notebook: Any) -> None:
    """Scores from five partitions on a cluster equal those of one partition."""
    cell = next(c for c in notebook.cells if c.source.startswith("scored.equals("))

    assert cell.outputs[-1]["data"]["text/plain"] == "True"


def test_nothing_was_said(notebook: Any) -> None:
    """No cell prints a warning."""
    streams = [
        o for c in notebook.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "stream"
    ]

    assert [stream.text for stream in streams if stream.name == "stderr"] == []


def test_saved_without_outputs() -> None:
    """The notebook in the repository holds no outputs: they would only age."""
    read = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)

    assert [cell.outputs for cell in read.cells if cell.cell_type == "code" and cell.outputs] == []
