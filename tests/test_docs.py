"""The documentation says what is true: every example runs, every flag, field and error is in it."""

import doctest
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from batchserve import cli, config, errors

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
EXAMPLE_PAGES = [ROOT / "examples" / name / "README.md" for name in ("flights", "iris")]
ALL_PAGES = PAGES + EXAMPLE_PAGES
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
COMMANDS: Mapping[str, Any] = vars(typer.main.get_command(cli.app))["commands"]
PLAIN = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a console block, its exit code, and the text printed under it."""

    command: str
    code: int
    output: str


def console_blocks(text: str) -> Iterator[list[Step]]:
    """Give the fenced console blocks whose first line is a `$ batchserve` (variables may stand before it)."""
    pattern = r"^```console\n(\$ (?:\w+=\S+ )*batchserve .*?)^```$"
    for block in re.findall(pattern, text, re.MULTILINE | re.DOTALL):
        pieces = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
        yield [step(piece) for piece in pieces]


def step(piece: str) -> Step:
    """Read one command, a remark like `# exit 65`, and what it printed."""
    line, _, output = piece.partition("\n")
    found = re.search(r"\s*# exit (\d+)$", line)
    return Step(line, int(found[1]) if found else 0, output)


def blurred(text: str) -> str:
    r"""Replace what differs from run to run: digests, numbers, units of size; drop trailing spaces.

    Example:
        >>> blurred("5,027 rows, 464 kB, 9f86d081884c \n")
        'N rows, N bytes, HASH'
    """
    text = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{12,64}\b", "HASH", text)
    text = re.sub(r"\d[\d,]*(\.\d+)*", "N", text)
    text = re.sub(r"N ([kMGT]?B)\b", "N bytes", text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def environment() -> dict[str, str]:
    """Return an environment without our settings, with this Python's commands first and plain output."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(config.ENV_PREFIX)}
    folder = str(Path(sys.executable).parent)
    return kept | PLAIN | {"PATH": os.pathsep.join([folder, kept.get("PATH", "")])}


def shell(command: str, folder: Path) -> tuple[int, str]:
    """Run a command line as a reader of the page would."""
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=folder, env=environment(), check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """Make a folder that holds a copy of the examples and the configs."""
    for name in ("examples", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every console block prints what the page shows; then every Python block runs, in the same folder."""
    folder = workplace / page.parent.relative_to(ROOT) if page in EXAMPLE_PAGES else workplace
    monkeypatch.chdir(folder)
    for block in console_blocks(page.read_text()):
        for expected in block:
            code, output = shell(expected.command, folder)

            assert blurred(output) == blurred(expected.output), f"{expected.command}\n{output}"
            assert code == expected.code, expected.command
    parser = PythonCodeBlockParser(doctest_optionflags=doctest.ELLIPSIS)
    for example in Sybil(parsers=[parser], path=str(page.parent)).parse(page).examples():
        example.evaluate()


def tables(text: str) -> list[list[str]]:
    """Return the rows of all Markdown tables of a page, their cells without backticks."""
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip().replace("`", "").replace(r"\|", "|") for cell in row] for row in rows]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help(name: str, tmp_path: Path) -> None:
    """The help text on the page is what the command prints."""
    page = (DOCS / "cli.md").read_text()
    line = f"batchserve {name} --help" if name else "batchserve --help"
    _, printed = shell(line, tmp_path)
    found = re.search(rf"^```text\n\$ {line}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert found, f"docs/cli.md has no block that starts with $ {line}"

    assert tidied(found[1]) == tidied(printed)


def tidied(text: str) -> list[str]:
    """Return lines without trailing spaces."""
    return [line.rstrip() for line in text.strip().splitlines()]


def flags_of(name: str) -> set[str]:
    """Return the long names of a command's options."""
    options = [p for p in COMMANDS[name].params if p.param_type_name == "option"]
    return {max(option.opts, key=len) for option in options}


ITS_OWN = {
    "--sample", "--weights", "--tolerance", "--accept-drift", "--precision", "--trust-pickle", "--top",
}  # fmt: skip
"""Flags of `export` and `compare`, which mean something in their sections alone."""


def test_flags() -> None:
    """The table of flags names each flag's key and variable; it has every flag and no other."""
    cells = tables((DOCS / "cli.md").read_text())
    rows = {row[0].split(",")[0]: row for row in cells if re.match(r"--\w", row[0])}
    flags = set[str]().union(*(flags_of(name) for name in COMMANDS)) - {"--help"} - ITS_OWN

    assert set(rows) == flags
    for flag, row in rows.items():
        key = flag[2:].replace("-", "_")
        job = key in config.FIELDS  # the others are of commands that score nothing
        assert row[1] == (key if job else "-"), flag
        assert row[2] == (f"BATCHSERVE_{key.upper()}" if job or key == "config" else "-"), flag
    assert {flag[2:].replace("-", "_") for flag in rows} >= set(config.FIELDS)


def test_every_command_has_a_section() -> None:
    """The page of commands has a heading for each."""
    page = (DOCS / "cli.md").read_text()

    assert set(re.findall(r"^## batchserve (\w+)$", page, re.MULTILINE)) == set(COMMANDS)


def test_beside_the_inputs() -> None:
    """The page of the config lists exactly the keys that a file beside the inputs may set."""
    page = (DOCS / "config.md").read_text()
    found = re.search(r"may set only these keys: (.*?)\.\n", page, re.DOTALL)
    assert found

    assert set(re.findall(r"`(\w+)`", found[1])) == config.BESIDE_MAY_SET


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_files(path: Path) -> None:
    """The config files that are shipped load, and set something."""
    settings = config.load({}, [], config=str(path), environment={})

    assert settings.origins
    assert settings.file == path


def test_config_example(tmp_path: Path) -> None:
    """The config on the page has every key that fits in a file, and loads."""
    blocks = re.findall(r"^```toml\n(.*?)^```$", (DOCS / "config.md").read_text(), re.MULTILINE | re.DOTALL)
    path = tmp_path / "batchserve.toml"
    path.write_text(blocks[0])

    assert set(config.load({}, [], config=str(path), environment={}).origins) == set(tomllib.loads(blocks[0]))
    assert set(tomllib.loads(blocks[0])) | {"cluster"} == set(config.FIELDS)  # in the comment: not both


def error_classes() -> list[type[errors.BatchserveError]]:
    """Return every error class that exists."""
    found = [errors.BatchserveError]
    for kind in found:
        found += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == errors.__name__]


def test_error_codes() -> None:
    """The table of exit codes has one row for each error class, with the code of that class."""
    rows = [row for row in tables((DOCS / "errors.md").read_text()) if row[0].isdigit()]

    assert {(row[1], int(row[0])) for row in rows} == {
        *((kind.__name__, kind.exit_code) for kind in error_classes()),
        ("-", 0),
    }
    assert all(len(row) == len(rows[0]) and all(row) for row in rows)


def test_layers() -> None:
    """The modules on the page are those of the import contract, in its order."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contract = project["tool"]["importlinter"]["contracts"][0]
    page = (DOCS / "architecture.md").read_text()

    assert re.findall(r"^\d+\. `(\w+)`", page, re.MULTILINE) == contract["layers"]


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    """Every link to a file of the repository leads somewhere."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []
