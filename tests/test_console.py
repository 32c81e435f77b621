"""What people see: a live line on a terminal, plain lines elsewhere, and a short summary."""

import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from batchserve import events
from batchserve.config import load
from batchserve.console import Screen, printable
from batchserve.errors import DataError
from batchserve.meter import Meter
from workbench import FLIGHTS, IRIS, IRIS_MODEL, echo, run

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def scored(**changes: int | bool) -> events.PartitionScored:
    """Return the event of a partition of 1,000 rows, a tenth of them rejected."""
    facts: dict[str, int | bool] = {"index": 0, "rows_in": 1_000, "rows_rejected": 100, "bytes_in": 5_000}
    return events.PartitionScored(**(facts | changes), seconds={"read": 1.0, "model": 3.0})  # type: ignore[arg-type]  # of one kind


def planned(done: int = 0) -> events.Planned:
    """Return the event of a plan of 10 kB in four partitions."""
    return events.Planned(plan_id="x", partitions=4, partitions_done=done, bytes_total=10_000, workers=2)


def in_terminal(*arguments: str | Path, **environment: str) -> tuple[int, str]:
    """Run batchserve with stderr on a real pseudo-terminal; return its code and what it drew."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 110))
    env = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS"}}
    with subprocess.Popen(
        [sys.executable, "-c", "from batchserve.cli import main\nmain()", *map(str, arguments)],
        stderr=theirs, env={**env, "TERM": "xterm-256color", **environment},
    ) as running:  # fmt: skip
        os.close(theirs)
        drawn = b""
        while block := _read(ours):
            drawn += block
    os.close(ours)
    return running.returncode, drawn.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # what Linux says when the other side is gone
        return b""


# -- on a terminal ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The flights sample five times over."""
    header, *rows = FLIGHTS.read_text().splitlines(keepends=True)
    path = tmp_path_factory.mktemp("flights") / "flights.csv"
    path.write_text(header + "".join(rows) * 5)
    shutil.copy(FLIGHTS.parent / "model.onnx", path.parent)
    shutil.copy(FLIGHTS.parent / "batchserve.toml", path.parent)
    return path


def test_a_terminal_gets_a_live_line(many_flights: Path, tmp_path: Path) -> None:
    """On a terminal a line is drawn while the job runs and taken away for the summary."""
    arguments = (
        "score",
        many_flights,
        tmp_path / "out.parquet",
        "--partition-size",
        "400k",
        "--workers",
        "1",
    )

    code, drawn = in_terminal(*arguments)

    assert code == 0, drawn
    live, taken_away, summary = drawn.rpartition("\x1b[2K")
    assert "━ " in ANSI.sub("", live)
    assert taken_away
    assert "25,135 rows from flights.csv" in summary
    assert "━" not in summary


def test_the_live_line_tells_how_it_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line has rows, rates, the share of rejects, the model's share and the time left."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    screen = Screen()

    screen.on(planned())
    screen.on(events.RowsScored(rows=500))
    screen.on(scored())
    screen.close()

    drawn = ANSI.sub("", capsys.readouterr().err)
    line = r"━ 1,000 rows · [\d,]+ rows/s · [\d.]+ [kMG]?B/s · rejected 10\.0% · model 75% · \d+ s left"
    assert re.search(line, drawn), drawn


def test_the_live_line_ends_with_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When all is scored the line says that the output is checked and published."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    screen = Screen()

    screen.on(planned())
    screen.on(events.Publishing(parts=4))
    screen.close()

    assert "checking and publishing" in ANSI.sub("", capsys.readouterr().err)


def test_no_progress_draws_no_line(many_flights: Path, tmp_path: Path) -> None:
    """With --no-progress a terminal gets the plain lines only."""
    code, drawn = in_terminal("score", many_flights, tmp_path / "out.parquet", "--no-progress", NO_COLOR="1")

    assert code == 0, drawn
    assert "\x1b" not in drawn
    assert re.match(r"batchserve .*\r\n.*25,135 rows.*\r\n.*rows/s.*\r\n", drawn)


def test_no_color_is_honoured(tmp_path: Path) -> None:
    """Errors are red on a terminal, unless NO_COLOR is set."""
    _, red = in_terminal("score", "gone.csv", tmp_path / "out.parquet", "-m", IRIS_MODEL)
    _, plain = in_terminal("score", "gone.csv", tmp_path / "out.parquet", "-m", IRIS_MODEL, NO_COLOR="1")

    assert "\x1b[1;31merror: \x1b[0m" in red
    assert "31m" not in plain
    assert "error: gone.csv" in plain.replace("\x1b[1m", "").replace("\x1b[0m", "")


# -- elsewhere --------------------------------------------------------------------------------


def test_a_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is no terminal a minute brings one line: run, rows, rates, oldest partition."""
    screen = Screen()

    screen.on(events.Started(run_id="ab12", output="out.parquet"))
    screen.on(planned())
    screen.on(scored())
    screen.minute()
    screen.close()

    err = capsys.readouterr().err
    assert err.startswith("run ab12 · 1,000 rows · ")
    assert "rejected 10.0% · model 75%" in err
    assert err.endswith("oldest running partition 1\n")


@pytest.mark.parametrize("screen", ["quiet", "no-progress"])
def test_the_line_a_minute_can_be_silenced(screen: str, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no line of progress when quiet or without progress."""
    shown = Screen(quiet=screen == "quiet", progress=screen != "no-progress")

    shown.on(planned())
    shown.on(scored())
    shown.minute()

    assert capsys.readouterr().err == ""


def test_a_continued_job_says_how_much_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    """A job that goes on from finished parts says how many."""
    Screen().on(planned(done=3))

    assert capsys.readouterr().err == "continuing: 3 of 4 partitions done\n"


def test_other_events_have_their_line(capsys: pytest.CaptureFixture[str]) -> None:
    """An amended column and the dashboard's address are one line each."""
    screen = Screen()

    screen.on(events.Amended(columns={"zip": "a.csv:7"}))
    screen.on(events.DashboardOpened(url="http://127.0.0.1:1/status"))

    amended, dashboard = capsys.readouterr().err.splitlines()
    assert "zip" in amended
    assert "a.csv:7" in amended
    assert dashboard == "dashboard http://127.0.0.1:1/status"


def metered() -> Meter:
    """Return a meter of a job of 10,000 bytes that has just begun."""
    meter = Meter()
    meter.on(planned())
    return meter


def test_rows_of_earlier_runs_do_not_count_as_speed() -> None:
    """Partitions that an earlier run finished move the share, not the rows of this run."""
    meter = metered()

    meter.on(scored(resumed=True))

    assert (meter.rows, meter.share) == (0, 0.5)
    assert "left" not in meter.line()


def test_the_meter_counts_rows_and_share() -> None:
    """Rows, share of rejects and share of the input add up over partitions."""
    meter = metered()

    meter.on(scored())
    meter.on(scored(index=1, rows_rejected=0))

    assert (meter.rows, meter.rejected, meter.share) == (2_000, 100, 1.0)
    assert "rejected 5.0% · model 75% · 0 s left" in meter.line()


def test_before_the_first_partition_nobody_knows_the_share() -> None:
    """Before anything is scored there is no share and no time left."""
    assert metered().share is None
    assert "left" not in metered().line()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é text", "plain é text"), ("a\x1b[31mb", "a\\x1b[31mb"), ("two\nlines", "two\nlines"),
        ("a\rb\tc", "a\\x0db\\x09c"), ("a\x07", "a\\x07"),
    ],
)  # fmt: skip
def test_control_characters_are_shown_not_sent(text: str, shown: str) -> None:
    """Control characters are printed as codes: a file name cannot drive a terminal."""
    assert printable(text) == shown


def test_errors_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets that rich would take for markup, and control characters, are shown as text."""
    Screen().error(DataError("[red]a[/red] \x1b[0m.csv: is odd", "[bold]mend it[/bold]"))

    err = capsys.readouterr().err
    assert err == "error: [red]a[/red] \\x1b[0m.csv: is odd\nhint:  [bold]mend it[/bold]\n"


def test_an_error_without_hint_has_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a hint there is no hint line."""
    Screen(quiet=True).error(DataError("odd"))

    assert capsys.readouterr().err == "error: odd\n"


def test_long_lines_are_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    """A path is printed whole however narrow the window: people paste it."""
    name = "a/" * 200 + "b.csv"

    Screen().error(DataError(f"{name}: is odd"))

    assert f"error: {name}: is odd\n" == capsys.readouterr().err


def test_verbose_names_origins(capsys: pytest.CaptureFixture[str]) -> None:
    """The verbose header tells where every value comes from."""
    settings = load({"model": "m.onnx"}, [], environment={"BATCHSERVE_LIMIT": "3"})

    Screen(verbose=True).header("1.0", settings)

    assert capsys.readouterr().err.splitlines() == [
        "batchserve 1.0 · model m.onnx", "  limit from env BATCHSERVE_LIMIT", "  model from flag",
    ]  # fmt: skip


# -- the summary ------------------------------------------------------------------------------


def test_the_summary_counts_several_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The summary of a job over several files says how many."""
    for name in ("a.csv", "b.csv"):
        shutil.copy(IRIS, tmp_path / name)

    done = run(capsys, "score", tmp_path, tmp_path.parent / f"{tmp_path.name}.parquet", "-m", IRIS_MODEL)

    assert done.code == 0, done.err
    assert "300 rows from 2 files (7.7 kB in, " in done.err


def test_the_summary_says_what_nulls_became(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nulls the model saw are told with their count and the very text that filled them."""
    (tmp_path / "a.csv").write_text("x,z\na,1\n,2\n,3\n")
    model = echo(tmp_path / "model.onnx")

    done = run(
        capsys, "score", tmp_path / "a.csv", tmp_path / "out.parquet", "-m", model, "--on-null", "fill=banana"
    )

    assert done.code == 0, done.err
    assert "x: 2 nulls became banana" in done.err
