"""Real files with bytes flipped, cut, doubled and put in: nothing breaks, every record is accounted for.

    python tests/mutants.py 500 --seed 1          # 500 mutants; one line of JSON for each
    python tests/mutants.py 1 --seed 1 --first 77 # mutant 77 alone

Each mutant is scored in a process of its own, forked from one that has imported everything.
"""

import argparse
import gzip
import importlib
import io
import json
import lzma
import os
import pickle
import posix
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from bz2 import compress as bzip2
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from pyarrow import ipc

import batchserve as bs
import models
import splitters
from batchserve import receipts, target
from batchserve.errors import BatchserveError

EXAMPLES = Path(__file__).parent.parent / "examples"

CPU_S, WALL_S = 10, 60
"""A mutant that takes longer hangs; the second is for a machine that does much else."""
MEMORY_BYTES = 1 << 30
DATA_CODES = frozenset({0, 2, 65, 70})
MODEL_CODES = DATA_CODES | {75}
"""What a mutated model may end with: 75 when the process dies thrice, or memory or time run out."""


@dataclass(frozen=True)
class Seed:
    """A real file, and how it is scored."""

    name: str
    raw: bytes
    options: dict[str, Any] = field(default_factory=dict)
    data: Path | None = None
    """What is scored where the file is a model."""

    @property
    def is_model(self) -> bool:
        """Whether the file is a model."""
        return self.data is not None


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant."""

    number: int
    name: str
    done: str
    """What was done to the file."""
    code: int = 0
    message: str = ""
    rows: int = 0
    rejects: int = 0
    peak_mb: int = 0
    cpu_s: float = 0.0
    fault: str = ""
    """Which promise was broken; empty if none."""


# -- real files -------------------------------------------------------------------------------


def seeds(home: Path) -> list[Seed]:
    """Return the files that are mutated: small ones, so that most bytes matter."""
    iris = (EXAMPLES / "iris/iris.csv").read_bytes()
    lines = (EXAMPLES / "flights/flights.csv").read_bytes().splitlines(keepends=True)
    flights = b"".join(lines[:301])
    texts = b"kind,note,n\n" + b"".join(_NOTES[i % len(_NOTES)] % i for i in range(200))
    iris_model = {"model": EXAMPLES / "iris/model.onnx"}
    flights_model = {"model": EXAMPLES / "flights/model.onnx", "on_null": "nan"}
    text_model = {"model": models.texts(home), "on_null": "kind:fill=x"}
    told: dict[str, Any] = {
        "delimiter": ",",
        "quote": '"',
        "escape": "none",
        "header": "yes",
        "skip_lines": 0,
    }
    cut = {"partition_size": 2_000, "workers": 2}
    json_lines = _json(flights)
    return [
        Seed("iris.csv", iris, iris_model),
        Seed("iris told.csv", iris, iris_model | told),
        Seed("flights.csv", flights, flights_model),
        Seed("flights told.csv", flights, flights_model | told),
        Seed("texts.csv", texts, text_model),
        Seed("texts told.csv", texts, text_model | told),
        Seed("texts cut.csv", texts, text_model | told | cut),
        Seed("texts.tsv", texts.replace(b",", b"\t"), text_model),
        Seed("flights.jsonl", json_lines, flights_model),
        Seed("iris.jsonl", _json(iris), iris_model),
        Seed("iris cut.jsonl", _json(iris), iris_model | cut),
        Seed("iris.parquet", _parquet(home, iris, 40), iris_model),
        Seed("checked.parquet", _parquet(home, iris, 40, write_page_checksum=True), iris_model),
        Seed("flights.parquet", _parquet(home, flights, 100, compression="zstd"), flights_model),
        Seed("iris.arrow", _arrow(ipc.new_file, iris), iris_model),
        Seed("flights.arrow", _arrow(ipc.new_file, flights, compression="zstd"), flights_model),
        Seed("iris stream.arrow", _arrow(ipc.new_stream, iris), iris_model),
        Seed("iris.csv.gz", _gzip(iris), iris_model | told),
        Seed("iris.jsonl.gz", _gzip(_json(iris)), iris_model),
        Seed("streams.csv.gz", b"".join(map(_gzip, _halves(iris))), iris_model | told),
        Seed("iris.csv.bz2", b"".join(map(bzip2, _halves(iris))), iris_model | told),
        Seed("iris.csv.xz", b"".join(map(lzma.compress, _halves(iris))), iris_model | told),
        *_model_seeds(home, iris),
    ]  # fmt: skip


_NOTES = (
    b"red,plain,%d\r\n",
    b'green,"two\nlines, and ""quotes""",%d\r\n',
    b'"blue","",%d\r\n',
    b"NA,caf\xc3\xa9,%d\r\n",
)


def _gzip(raw: bytes) -> bytes:
    return gzip.compress(raw, mtime=0)


PACK: dict[str, Callable[[bytes], bytes]] = {"gz": _gzip, "bz2": bzip2, "xz": lzma.compress}


def _halves(raw: bytes) -> tuple[bytes, bytes]:
    return raw[: len(raw) // 2], raw[len(raw) // 2 :]


def _json(text: bytes) -> bytes:
    table = pacsv.read_csv(pa.BufferReader(text))
    rows = table.to_pylist()
    return "".join(json.dumps(row, default=str) + "\n" for row in rows).encode()


def _parquet(home: Path, text: bytes, group: int, **options: Any) -> bytes:
    path = home / "made.parquet"
    pq.write_table(pacsv.read_csv(pa.BufferReader(text)), path, row_group_size=group, **options)
    return path.read_bytes()


def _arrow(open_: Callable[..., Any], text: bytes, **options: Any) -> bytes:
    table = pacsv.read_csv(pa.BufferReader(text))
    sink = io.BytesIO()
    with open_(sink, table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=50)
    return sink.getvalue()


def _model_seeds(home: Path, iris: bytes) -> Iterator[Seed]:
    wide, named = home / "wide.csv", home / "named.csv"
    wide.write_text("a,b,c,d\n" + "".join(f"{i},{i / 2},{i % 7},-{i}\n" for i in range(100)))
    named.write_text("a,b,kind\n" + "".join(f"{i},{i / 2},red\n" for i in range(100)))
    (home / "iris.csv").write_bytes(iris)
    columns = {"features": ("a", "b", "c", "d")}
    yield Seed("iris.onnx", (EXAMPLES / "iris/model.onnx").read_bytes(), {}, home / "iris.csv")
    yield Seed("wide.onnx", models.wide(home).read_bytes(), columns, wide)
    yield Seed("tensor.onnx", models.tensor(home).read_bytes(), columns, wide)
    yield Seed("named.onnx", models.named(home).read_bytes(), {}, named)


# -- what is done to them ---------------------------------------------------------------------

_PUT_IN = (
    b'"',
    b"\n",
    b"\r",
    b"\r\n",
    b"\0",
    b"\xef\xbb\xbf",
    b",",
    b'""',
    b"\xff",
    b"\\",
    b"{",
    b"}",
    b"\xe9",
    b"\t",
)


def mutate(raw: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Do one to four things to a file; return it, and what was done."""
    done = []
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        act = chance.choice(_ACTS)
        raw = act(raw, chance)
        done.append(act.__name__.strip("_"))
    return raw, " ".join(done)


def _place(raw: bytes, chance: random.Random) -> int:
    """Return a place: mostly anywhere, sometimes near the start or the end, where headers are."""
    last = max(0, len(raw) - 1)
    near = chance.choice((last, last, min(last, 100)))
    at = chance.randint(0, near)
    return last - at if chance.random() < 0.3 else at


def _flip(raw: bytes, chance: random.Random) -> bytes:
    at = _place(raw, chance)
    return raw[:at] + bytes(byte ^ 1 << chance.randrange(8) for byte in raw[at : at + 1]) + raw[at + 1 :]


def _overwrite(raw: bytes, chance: random.Random) -> bytes:
    at, size = _place(raw, chance), chance.choice((1, 1, 2, 4, 8))
    return raw[:at] + chance.randbytes(size) + raw[at + size :]


def _delete(raw: bytes, chance: random.Random) -> bytes:
    at = _place(raw, chance)
    return raw[:at] + raw[at + chance.choice((1, 1, 3, 30, 300)) :]


def _insert(raw: bytes, chance: random.Random) -> bytes:
    at = _place(raw, chance)
    return raw[:at] + chance.choice(_PUT_IN) + raw[at:]


def _fill(raw: bytes, chance: random.Random) -> bytes:
    at = _place(raw, chance)
    return raw[:at] + chance.randbytes(chance.choice((1, 10, 100))) + raw[at:]


def _double(raw: bytes, chance: random.Random) -> bytes:
    at = _place(raw, chance)
    stop = at + chance.choice((1, 10, 100, 1_000))
    return raw[:stop] + raw[at:stop] + raw[stop:]


def _truncate(raw: bytes, chance: random.Random) -> bytes:
    return raw[: _place(raw, chance)]


def _swap(raw: bytes, chance: random.Random) -> bytes:
    lines = raw.split(b"\n")
    a, b = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]
    return b"\n".join(lines)


def _digit(raw: bytes, chance: random.Random) -> bytes:
    digits = [i for i, byte in enumerate(raw) if 48 <= byte < 58]
    if not digits:
        return raw
    at = chance.choice(digits)
    return raw[:at] + chance.choice((b"0", b"9", b"-", b"e9", b"99999999999999999999", b"x")) + raw[at + 1 :]


_ACTS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _overwrite, _delete, _insert, _insert, _fill, _double, _truncate, _swap, _digit,
)  # fmt: skip


# -- one mutant -------------------------------------------------------------------------------


def judged(seed: Seed, mutant: bytes, verdict: Verdict, folder: Path) -> Verdict:
    """Score a mutant, and hold what comes of it against the promises."""
    path = folder / (f"model{verdict.number}.onnx" if seed.is_model else seed.name)
    path.write_bytes(mutant)
    options = dict(seed.options) | ({"model": path} if seed.is_model else {})
    try:
        report = bs.score(
            seed.data or path, folder / "out.parquet", max_errors="100%", stall_timeout=5, **options
        )
    except BatchserveError as error:
        verdict = replace(verdict, code=error.exit_code, message=error.message)
        fault = _refusal_fault(seed, mutant, error) or _endless_fault(seed, mutant, folder, error)
        return replace(verdict, fault=fault)
    except Exception as error:  # noqa: BLE001  that is what is looked for
        return replace(verdict, code=1, fault=f"{error!r}\n{traceback.format_exc(limit=-3)}")
    rejects = report.receipt.rows_rejected
    verdict = replace(verdict, rows=report.rows, rejects=rejects)
    return replace(verdict, fault="" if seed.is_model else _account(seed, mutant, folder, verdict))


def _refusal_fault(seed: Seed, mutant: bytes, error: BatchserveError) -> str:
    if error.exit_code not in (MODEL_CODES if seed.is_model else DATA_CODES):
        return f"exit {error.exit_code}: {error}"
    if "bug in batchserve" in error.message:
        return str(error)
    suffix = seed.name.rpartition(".")[2]
    damaged = suffix in PACK and "stream is damaged" in error.message
    if damaged and splitters.unpacked(mutant, suffix) is not None:
        return f"is not damaged: {error}"
    return "" if _is_possible(error.message, mutant, suffix) else f"cannot be there: {error}"


def _is_possible(message: str, mutant: bytes, suffix: str) -> bool:
    """Whether the place of a damage is one that an independent reader gets to, too."""
    place = re.search(r"after (byte|row) ([\d,]+)", message)
    if place is None:
        return True
    return int(place[2].replace(",", "")) <= _reached(mutant, suffix)


def _reached(mutant: bytes, suffix: str) -> int:
    """Return the rows, or of a packed text the bytes, that an independent reader gets to."""
    if suffix == "parquet":
        return splitters.parquet_rows(mutant) or 0
    if suffix == "arrow":
        return splitters.readable_arrow_rows(mutant)
    return splitters.readable_bytes(mutant, suffix)


def _endless_fault(seed: Seed, mutant: bytes, folder: Path, error: BatchserveError) -> str:
    """Hold a record that never ends, where the dialect was said, against the last one of the splitter."""
    if "does not end" not in error.message or "delimiter" not in seed.options:
        return ""
    suffix = seed.name.rpartition(".")[2]
    expected = splitters.csv_records(
        (splitters.unpacked(mutant, suffix) if suffix in PACK else mutant) or b""
    )
    places = {line["record"]: line["byte_offset"] for line in _rejects(folder)}
    wrong = [f"record {n} at {at}" for n, at in places.items() if expected[n - 1] != at]
    return f"does not end, says {error}; {wrong}" if wrong or max(places) != len(expected) else ""


def _account(seed: Seed, mutant: bytes, folder: Path, verdict: Verdict) -> str:
    """Compare rows and rejects, and the places of these, with what an independent reader counts."""
    table = pq.read_table(folder / "out.parquet")
    lines = _rejects(folder)
    if (table.num_rows, len(lines)) != (verdict.rows, verdict.rejects):
        return f"{table.num_rows} rows and {len(lines)} rejects are there, {verdict} was said"
    expected = _records(seed, mutant, folder)
    if expected is None:
        return "is damaged, and was scored"
    count = expected if isinstance(expected, int) else len(expected)
    if verdict.rows + verdict.rejects != count:
        return f"{verdict.rows} rows and {verdict.rejects} rejects of {count} records"
    if not isinstance(expected, int):
        wrong = [line for line in lines if expected[line["record"] - 1] != line["byte_offset"]]
        return f"is not at its place: {wrong[0]}" if wrong else ""
    return ""


def _rejects(folder: Path) -> list[dict[str, Any]]:
    path = folder / "out.rejects.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _records(seed: Seed, mutant: bytes, folder: Path) -> list[int] | int | None:
    """Return the offsets of the records of a mutant, or their number, or None if it is damaged."""
    name, _, suffix = seed.name.rpartition(".")
    if suffix == "parquet":
        return splitters.parquet_rows(mutant)
    if suffix == "arrow":
        return splitters.arrow_rows(mutant)
    if suffix in {"gz", "bz2", "xz"}:
        text = splitters.unpacked(mutant, suffix)
        if text is None:
            return None
        mutant, suffix = text, name.rpartition(".")[2]
    receipt = receipts.receipt_of(target.at(str(folder / "out.parquet")))
    assert receipt is not None
    dialect = receipt.runs[-1].plan.recipe.reading.dialect
    if dialect.streamed:  # places are then those of its UTF-8 text
        mutant = mutant.decode(dialect.encoding, "replace").encode()
    if suffix == "jsonl":
        return splitters.json_records(mutant)
    names = ("delimiter", "quote", "escape", "header", "skip_lines")
    marks = splitters.Marks(**{each: getattr(dialect, each) for each in names})
    return splitters.csv_records(mutant, marks)


# -- many mutants -----------------------------------------------------------------------------


def sweep(first: int, count: int, step: int, seed: int) -> Iterator[Verdict]:
    """Judge mutants `first`, `first + step`, ... of a seed."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        kinds = seeds(home)
        _warm(kinds, home)
        for number in range(first, first + count * step, step):
            yield _one(kinds, number, seed, home / "mutant")


def _warm(kinds: Sequence[Seed], home: Path) -> None:
    """Import all that scoring does, once: forks have it then."""
    for name in ("clevercsv.detect", "dask.dataframe", "distributed"):
        importlib.import_module(name)

    for i, kind in enumerate(kinds):
        if not kind.is_model and "cut" not in kind.name:
            (home / kind.name).write_bytes(kind.raw)
            bs.score(home / kind.name, home / f"{i}.parquet", **kind.options)


def _one(kinds: Sequence[Seed], number: int, seed: int, folder: Path) -> Verdict:
    chance = random.Random(f"{seed} {number}")
    kind = kinds[number % len(kinds)]
    mutant, done = _mutant(kind, chance)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    begun = Verdict(number, kind.name, done)
    verdict = _forked(kind, mutant, begun, folder)
    return _commanded(kind, begun, folder) if kind.is_model and verdict.code < 0 else verdict


def _mutant(kind: Seed, chance: random.Random) -> tuple[bytes, str]:
    """Mutate a file; of those that are packed every second one inside."""
    pack = PACK.get(kind.name.rpartition(".")[2])
    if pack is None or chance.random() < 0.5:
        return mutate(kind.raw, chance)
    text, done = mutate(splitters.unpacked(kind.raw, kind.name.rpartition(".")[2]) or b"", chance)
    return pack(text), f"inside {done}"


def _forked(kind: Seed, mutant: bytes, begun: Verdict, folder: Path) -> Verdict:
    """Judge a mutant in a fork; it may die, hang or take all memory."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _limited()
        sys.stderr = sys.stdout = (folder / "said").open("w")
        os.write(writer, pickle.dumps(judged(kind, mutant, begun, folder)))
        posix._exit(0)  # without saving what was covered, as coverage's own end does
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        ready = select.select([pipe], [], [], WALL_S)[0]
        if not ready:
            os.kill(child, signal.SIGKILL)
        said = pipe.read()
    _, status, usage = os.wait4(child, 0)
    verdict = pickle.loads(said) if said else _died(begun, os.waitstatus_to_exitcode(status), hung=not ready)
    peak_mb, cpu_s = usage.ru_maxrss // 1000, round(usage.ru_utime + usage.ru_stime, 2)
    verdict = replace(verdict, peak_mb=peak_mb, cpu_s=cpu_s)
    if not verdict.fault and not kind.is_model and peak_mb * 1000_000 > MEMORY_BYTES:
        return replace(verdict, fault=f"took {peak_mb:,} MB")
    return verdict


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 5))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2 * MEMORY_BYTES,) * 2)


def _died(begun: Verdict, code: int, *, hung: bool) -> Verdict:
    took = hung or code == -signal.SIGXCPU
    return replace(begun, code=code, fault="hangs" if took else f"the process died: {code}")


def _commanded(kind: Seed, begun: Verdict, folder: Path) -> Verdict:
    """Score with a model that kills its process, by the command, which outlives that."""
    shutil.rmtree(folder / "again", ignore_errors=True)
    arguments = [
        str(kind.data),
        str(folder / "again" / "out.parquet"),
        "-m",
        str(folder / f"model{begun.number}.onnx"),
    ]
    (folder / "again").mkdir()
    if features := kind.options.get("features"):
        arguments += ["--features", ",".join(features)]
    done = subprocess.run(
        [sys.executable, "-m", "batchserve", "score", *arguments, "--stall-timeout", "5"],
        capture_output=True, text=True, check=False, timeout=10 * WALL_S, preexec_fn=_limited,
    )  # fmt: skip
    code = done.returncode
    fault = (
        "" if code in MODEL_CODES and "Traceback" not in done.stderr else f"exit {code}: {done.stderr[-500:]}"
    )
    return replace(begun, code=code, message=done.stderr[-300:], fault=fault)


# -- what came of all -------------------------------------------------------------------------


@dataclass
class Result:
    """What became of many mutants."""

    verdicts: list[Verdict]
    minutes: float

    def facts(self) -> dict[str, str | int]:
        """Return the figures."""
        codes = Counter(verdict.code for verdict in self.verdicts)
        return {
            "mutants": len(self.verdicts),
            "scored, every record accounted for": codes[0],
            **{f"refused with exit {code}": n for code, n in sorted(codes.items()) if code},
            "rows scored": sum(verdict.rows for verdict in self.verdicts),
            "rejects, each at its place": sum(verdict.rejects for verdict in self.verdicts),
            "peak MB": max((v.peak_mb for v in self.verdicts if ".onnx" not in v.name), default=0),
            "promises broken": len(self.faults),
        }  # fmt: skip

    @property
    def faults(self) -> list[str]:
        """What was broken, by which mutant."""
        return [f"mutant {v.number} of {v.name} ({v.done}): {v.fault}" for v in self.verdicts if v.fault]


def run(count: int, seed: int = 1, lanes: int = 2) -> Result:
    """Judge `count` mutants in processes of their own."""
    started = time.monotonic()
    plain = {
        name: text for name, text in os.environ.items() if not name.startswith(("COVERAGE_", "BATCHSERVE_"))
    }
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(len(range(lane, count, lanes))), "--seed", str(seed),
             "--first", str(lane), "--step", str(lanes)],
            stdout=subprocess.PIPE, text=True, env=plain,
        )
        for lane in range(lanes)
    ]  # fmt: skip
    with ThreadPoolExecutor(lanes) as pool:
        said = list(pool.map(lambda worker: worker.communicate()[0], workers))
    assert not any(worker.returncode for worker in workers)
    verdicts = [Verdict(**json.loads(line)) for text in said for line in text.splitlines()]
    return Result(sorted(verdicts, key=lambda v: v.number), (time.monotonic() - started) / 60)


def main() -> None:
    """Print one line of JSON per mutant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("count", type=int)
    for name, default in (("--seed", 1), ("--first", 0), ("--step", 1)):
        parser.add_argument(name, type=int, default=default)
    asked = parser.parse_args()
    out = os.dup(1)  # whatever the native libraries say goes elsewhere
    os.dup2(2, 1)
    with os.fdopen(out, "w") as lines:
        for verdict in sweep(asked.first, asked.count, asked.step, asked.seed):
            lines.write(json.dumps(asdict(verdict)) + "\n")
            lines.flush()


if __name__ == "__main__":
    main()
