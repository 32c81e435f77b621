"""Every bad input of the issue: one clear message, the documented exit code, nothing written."""

import gzip
import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import onnx
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

import batchserve as bs
from workbench import IRIS, IRIS_HEADER, IRIS_MODEL, doubler, listing, mixer, run, save_model, spawn

NO_OVERRIDE = (
    "import ctypes, os, sys\n"
    "for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: modes bind root too\n"
    "    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)\n"
    "if not os.environ.get('ONCE_MORE'):\n"
    "    os.environ['ONCE_MORE'] = '1'\n"
    "    os.execv(sys.executable, sys.orig_argv)\n"
)
"""Statements after which file modes hold for root as they do for everybody."""

SEVERAL_MISTAKES = """\
model = "model.onnx"
modle = "model.onnx"
on-null = "nan"
worker = 2
"""
SEVERAL_VALUES = """\
model = "model.onnx"
infer = "deep"
limit = 0

batch_rows = 100
partition_size = "many"
"""


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with everything that can be wrong with a file."""
    home = tmp_path_factory.mktemp("odd")
    shutil.copy(IRIS, home / "iris.csv")
    shutil.copy(IRIS_MODEL, home / "model.onnx")
    _models(home)
    _texts(home)
    _tables(home)
    _configs(home)
    _outputs(home)
    return home


def _models(home: Path) -> None:
    whole = IRIS_MODEL.read_bytes()
    (home / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (home / "random.onnx").write_bytes(bytes(range(255, 0, -1)) * 3)
    (home / "words.onnx").write_text("this is no model\n")
    (home / "nothing.onnx").write_bytes(b"")
    mixer(home / "mixer.onnx", "sepal_length")
    doubler(home / "named.onnx", "sepal_width")
    doubler(home / "when.onnx", "when")
    cube = onnx.helper.make_node("Identity", ["x"], ["y"])
    port = (onnx.TensorProto.FLOAT, [None, 2, 2])
    save_model(home / "cube.onnx", [cube], {"x": port}, {"y": port})
    two = (onnx.TensorProto.FLOAT, [None, 4])
    bare = onnx.helper.make_node("Identity", ["x"], ["y"])
    save_model(home / "bare.onnx", [bare], {"x": two}, {"y": two})


def _texts(home: Path) -> None:
    text = IRIS.read_text()
    (home / "mistyped.csv").write_text(text.replace("sepal_width", "sepal_wdith", 1))
    (home / "words.csv").write_text(f"{IRIS_HEADER}\nsmall,1,2,3\nlarge,1,2,3\n")
    (home / "empty.csv").write_bytes(b"")
    (home / "blank.csv").write_bytes(b"\n\r\n\n")
    (home / "empty.jsonl").write_bytes(b"")
    (home / "utf16.csv").write_bytes(text.encode("utf-16-le"))
    (home / "rows.csv").write_bytes(f"{IRIS_HEADER},ü\n".encode() + "1,2,3,4,ü\n".encode("latin-1") * 9)
    (home / "returns.csv").write_bytes(text.replace("\n", "\r").encode())
    (home / "a.jsonl").write_text('{"sepal_length": 1}\n')
    (home / "latin.csv").write_bytes("größe,b\n1,2\n".encode("latin-1"))
    (home / "twice.csv").write_text("a,b,a\n1,2,3\n")
    (home / "drifted.csv").write_text(f"{IRIS_HEADER},kind\n1,2,3,4,setosa\n")
    (home / "turned.csv").write_text(",".join(reversed(IRIS_HEADER.split(","))) + ",species\n")
    (home / "label.csv").write_text(f"label,{IRIS_HEADER}\na,1,2,3,4\n")
    (home / "plain.csv.gz").write_text(text)
    packed = gzip.compress(text.encode())
    (home / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    (home / "flipped.csv.gz").write_bytes(packed[:200] + b"\x00\xff\x00\xff" + packed[204:])
    (home / "table.xlsx").write_bytes(b"PK\x03\x04")
    (home / "unreadable.csv").symlink_to("/proc/self/mem")


def _tables(home: Path) -> None:
    table = pacsv.read_csv(IRIS)
    pq.write_table(table, home / "iris.parquet")
    whole = (home / "iris.parquet").read_bytes()
    (home / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (home / "words.parquet").write_text("a,b\n1,2\n")
    (home / "empty.parquet").write_bytes(b"")
    (home / "table.csv").write_bytes(whole)
    pq.write_table(pa.table({"when": pa.array([0], pa.timestamp("us"))}), home / "when.parquet")
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 2, names=["a", "a"]), home / "twice.parquet")
    narrow = table.set_column(0, "sepal_length", table["sepal_length"].cast(pa.float32()))
    pq.write_table(narrow, home / "narrow.parquet")


def _configs(home: Path) -> None:
    (home / "several.toml").write_text(SEVERAL_MISTAKES)
    (home / "values.toml").write_text(SEVERAL_VALUES)
    (home / "broken.toml").write_text('model = "model.onnx"\nlimit 3\n')
    for name, text in (
        (
            "connects",
            'model = "model.onnx"\nscheduler = "tcp://somewhere:1"\noverwrite = true\nkeep = "none"\n',
        ),
        ("escapes", 'model = "../model.onnx"\n'),
    ):
        (home / name).mkdir()
        shutil.copy(IRIS, home / name / "iris.csv")
        shutil.copy(IRIS_MODEL, home / name / "model.onnx")
        (home / name / "batchserve.toml").write_text(text)


def _outputs(home: Path) -> None:
    bs.score(home / "iris.csv", home / "ours.parquet", model=home / "model.onnx")
    bs.score(home / "iris.csv", home / "ours", model=home / "model.onnx")
    (home / "data").mkdir()
    for name in ("a.parquet", "b.parquet"):
        shutil.copy(home / "iris.parquet", home / "data" / name)
    (home / "same.csv").symlink_to("iris.csv")
    (home / "soft.parquet").symlink_to("iris.parquet")
    os.link(home / "iris.parquet", home / "hard.parquet")
    (home / "folder.parquet").mkdir()
    (home / "plainfile").write_text("not ours\n")
    (home / "notes").mkdir()
    (home / "notes" / "readme.txt").write_text("not ours\n")
    (home / "locked").mkdir()
    (home / "a file").write_text("")


@dataclass(frozen=True, slots=True)
class Bad:
    """A command that must fail: its exit code, and pieces of what it says."""

    name: str
    command: str
    code: int
    says: tuple[str, ...]


M = "-m model.onnx"
O = "out.parquet"  # noqa: E741  the output of nearly every row
CASES = (
    Bad("model-missing", f"iris.csv {O} -m modle.onnx", 66, ("modle.onnx", "model.onnx?")),
    Bad("model-unnamed", f"iris.csv {O}", 2, ("no model is named", "--model", "BATCHSERVE_MODEL")),
    Bad("model-cut", f"iris.csv {O} -m cut.onnx", 70, ("cut.onnx", "export it again")),
    Bad("model-random", f"iris.csv {O} -m random.onnx", 70, ("random.onnx", "export it again")),
    Bad("model-text", f"iris.csv {O} -m words.onnx", 70, ("words.onnx", "export it again")),
    Bad("model-empty", f"iris.csv {O} -m nothing.onnx", 70, ("nothing.onnx", "hint:")),
    Bad("model-is-folder", f"iris.csv {O} -m notes", 66, ("notes: no such model", "hint:")),
    Bad("model-mixes-rows", f"iris.csv {O} -m mixer.onnx", 70, ("mixer.onnx", "ReduceMean", "--rows-depend")),
    Bad("model-takes-cubes", f"iris.csv {O} -m cube.onnx", 70, ("input x", "--map x=COLUMN")),
    Bad("features-unnamed", f"iris.csv {O} -m bare.onnx", 70, ("input x", "--features sepal_length,sepal")),
    Bad(
        "features-too-few", f"iris.csv {O} {M} --features sepal_length", 70,
        ("4 columns, 1", "sepal_length"),
    ),
    Bad("input-missing", f"irs.csv {O} {M}", 66, ("irs.csv: no such input", "did you mean iris.csv?")),
    Bad("glob-empty", f"'nothing*.csv' {O} {M}", 66, ("nothing*.csv", "check the pattern")),
    Bad("folder-empty", f"notes {O} {M}", 66, ("notes: no input file", ".csv")),
    Bad("input-unreadable", f"unreadable.csv {O} {M}", 74, ("unreadable.csv", "hint:")),
    Bad("input-format", f"table.xlsx {O} {M}", 2, ("table.xlsx: not a format", ".parquet")),
    Bad("input-formats", f"iris.csv iris.parquet {O} {M}", 2, ("iris.csv), parquet (", "one at a time")),
    Bad("input-twice", f"iris.csv iris.csv {O} {M}", 73, ("iris.csv: is the same file", "name it once")),
    Bad("input-twice-linked", f"iris.csv same.csv {O} {M}", 73, ("same.csv: is the same file", "once")),
    Bad("csv-empty", f"empty.csv {O} {M}", 65, ("empty.csv: is empty", "remove it")),
    Bad("csv-blank", f"blank.csv {O} {M}", 65, ("blank.csv: is empty", "remove it")),
    Bad("csv-utf16", f"utf16.csv {O} {M}", 65, ("utf16.csv: looks like UTF-16", "--encoding utf-16-le")),
    Bad("csv-latin1", f"latin.csv {O} {M}", 65, ("latin.csv: its header is not UTF-8", "--encoding cp1252")),
    Bad("csv-latin1-rows", f"rows.csv {O} {M}", 65, ("rows.csv: is not UTF-8", "--encoding cp1252")),
    Bad("csv-line-ends", f"iris.csv returns.csv {O} {M}", 65, ("returns.csv: its first line", "one kind")),
    Bad(
        "encoding-unknown", f"iris.csv {O} {M} --encoding utf-9", 2,
        ("--encoding utf-9: no such encoding", "latin-1"),
    ),
    Bad(
        "dialect-marks", f"iris.csv {O} {M} --delimiter ab --quote ü --escape ''", 2,
        ("3 problems", "--delimiter 'ab'", "--quote 'ü'", "--escape ''", "--delimiter tab"),
    ),
    Bad("dialect-same", f"iris.csv {O} {M} --delimiter ';' --quote ';'", 2, ("--delimiter ;", "another")),
    Bad("delimiter-none", f"iris.csv {O} {M} --delimiter none", 2, ("--delimiter none", "tab")),
    Bad("dialect-parquet", f"iris.parquet {O} {M} --skip-lines 1", 2, ("--skip-lines is for CSV", "leave")),
    Bad("dialect-jsonl", f"a.jsonl {O} {M} --header no", 2, ("--header is for CSV", "leave")),
    Bad("csv-column-twice", f"twice.csv {O} {M}", 65, ("twice.csv: column a is there twice", "rename")),
    Bad("csv-drift", f"iris.csv drifted.csv {O} {M}", 65, ("drifted.csv", "no column species", "kind")),
    Bad("csv-order", f"iris.csv turned.csv {O} {M}", 65, ("turned.csv", "in another order")),
    Bad("csv-is-parquet", f"table.csv {O} {M}", 65, ("table.csv: is a Parquet file", "suffix")),
    Bad("jsonl-empty", f"empty.jsonl {O} {M}", 65, ("empty.jsonl: no JSON object", "one object per line")),
    Bad("gzip-is-plain", f"plain.csv.gz {O} {M}", 65, ("plain.csv.gz: is not gzip", "suffix")),
    Bad("gzip-cut", f"cut.csv.gz {O} {M}", 65, ("cut.csv.gz", "cut off", "pack the file again")),
    Bad("gzip-damaged", f"flipped.csv.gz {O} {M}", 65, ("flipped.csv.gz", "damaged", "again")),
    Bad("parquet-cut", f"cut.parquet {O} {M}", 65, ("cut.parquet", "cut off", "fetch the file again")),
    Bad("parquet-is-text", f"words.parquet {O} {M}", 65, ("words.parquet: is no Parquet file", "suffix")),
    Bad("parquet-empty", f"empty.parquet {O} {M}", 65, ("empty.parquet: is no Parquet file", "hint:")),
    Bad("parquet-column-twice", f"twice.parquet {O} {M}", 65, ("twice.parquet: column a", "rename one")),
    Bad(
        "parquet-drift", f"iris.parquet narrow.parquet {O} {M}", 65,
        ("narrow.parquet", "sepal_length is float"),
    ),
    Bad("column-missing", f"mistyped.csv {O} {M}", 70, ("no column sepal_width", "mean sepal_wdith?")),
    Bad(
        "column-missing-named", f"mistyped.csv {O} -m named.onnx", 70,
        ("sepal_wdith?", "--map sepal_width="),
    ),
    Bad("column-unbindable", f"when.parquet {O} -m when.onnx", 70, ("column when is timestamp", "convert")),
    Bad("column-text", f"words.csv {O} {M}", 70, ("column sepal_length holds text ('small')", "hint:")),
    Bad("output-exists", f"iris.csv ours.parquet {M}", 73, ("ours.parquet: exists", "--overwrite")),
    Bad(
        "output-foreign", f"iris.csv iris.parquet {M}", 73,
        ("was not written by batchserve", "rm iris.parq"),
    ),
    Bad(
        "output-foreign-overwrite", f"iris.csv iris.parquet {M} --overwrite", 73,
        ("not written by", "rm iris"),
    ),
    Bad("output-dataset-exists", f"iris.csv ours {M}", 73, ("ours: exists", "--overwrite")),
    Bad("output-foreign-folder", f"iris.csv notes {M} --overwrite", 73, ("not written by", "rm -r notes")),
    Bad("output-is-folder", f"iris.csv folder.parquet {M}", 73, ("exists and is a folder", "another output")),
    Bad("output-is-file", f"iris.csv plainfile {M}", 73, ("exists and is a file", "another output")),
    Bad("output-is-input", f"iris.parquet iris.parquet {M}", 73, ("is the input", "another output")),
    Bad("output-is-input-soft", f"iris.parquet soft.parquet {M}", 73, ("is the input", "another output")),
    Bad("output-is-input-hard", f"iris.parquet hard.parquet {M}", 73, ("is the input", "another output")),
    Bad(
        "output-in-glob", f"'data/*.parquet' data/out.parquet {M}", 73,
        ("lies inside", "data/*.parquet", "folder"),
    ),
    Bad(
        "output-in-folder", f"data data/out.parquet {M}", 73,
        ("lies inside the input data", "another folder"),
    ),
    Bad(
        "output-in-deep-glob", f"'**/[ab].parquet' data/b.parquet {M}", 73,
        ("data/b.parquet: is the input", "name"),
    ),
    Bad(
        "output-in-recursive-glob", f"'data/**/*.parquet' data/new.parquet {M}", 73,
        ("lies inside the input data/**/*.parquet", "another folder"),
    ),
    Bad("output-holds-input", f"data/a.parquet data {M}", 73, ("holds the input", "another output")),
    Bad(
        "output-forgotten", f"data/a.parquet data/b.parquet {M} --overwrite", 73,
        ("data/b.parquet", "hint:"),
    ),
    *(
        Bad(
            f"output{suffix}", f"iris.csv out{suffix} {M}", 2,
            (f"out{suffix}: batchserve writes Parquet", f"did you mean {O}?"),
        )
        for suffix in (".csv", ".json", ".jsonl", ".arrow", ".feather")
    ),
    Bad("output-folder-missing", f"iris.csv gone/{O} {M}", 73, ("gone: no such folder", "mkdir -p")),
    Bad("output-under-file", f"iris.csv plainfile/{O} {M}", 73, ("plainfile: no such folder", "hint:")),
    Bad("output-unnamed", f"iris.csv {M}", 2, ("Missing argument 'INPUT'", "score -h")),
    Bad("option-unknown", f"iris.csv {O} {M} --overwrit", 2, ("--overwrit", "--overwrite")),
    Bad(
        "on-null-nonsense", f"iris.csv {O} {M} --on-null maybe", 70,
        ("--on-null maybe", "reject, nan or fill"),
    ),
    Bad(
        "on-null-column", f"iris.csv {O} {M} --on-null petal_lenth:nan", 70,
        ("no column petal_lenth", "petal_length?"),
    ),
    Bad(
        "on-null-fill", f"iris.csv {O} {M} --on-null petal_width:fill=wide", 70,
        ("'wide' is no float32", "fill=VALUE"),
    ),
    Bad("type-column", f"iris.csv {O} {M} --type specis=text", 2, ("no column specis", "mean species?")),
    Bad("type-type", f"iris.csv {O} {M} --type species=txt", 2, ("no type txt", "did you mean text?")),
    Bad("type-parquet", f"iris.parquet {O} {M} --type species=text", 2, ("--type", "leave it out")),
    Bad("type-malformed", f"iris.csv {O} {M} --type species", 2, ("--type", "NAME=VALUE")),
    Bad(
        "map-input", f"iris.csv {O} -m named.onnx --map sepal_wide=x", 70,
        ("sepal_wide", "mean sepal_width?"),
    ),
    Bad("outputs-unknown", f"iris.csv {O} {M} --outputs lable", 2, ("--outputs lable", "mean label?")),
    Bad("keep-unknown", f"iris.csv {O} {M} --keep specis", 2, ("--keep specis", "mean species?")),
    Bad("name-clash", f"label.csv {O} {M}", 2, ("column label", "--prefix")),
    Bad("batch-rows-odd", f"iris.csv {O} {M} --batch-rows 100", 2, ("--batch-rows", "multiple of 64")),
    Bad("size-nonsense", f"iris.csv {O} {M} --partition-size lots", 2, ("--partition-size", "64k, 32MiB")),
    Bad("limit-zero", f"iris.csv {O} {M} --limit 0", 2, ("--limit", "greater than or equal to 1")),
    Bad("infer-nonsense", f"iris.csv {O} {M} --infer deep", 2, ("--infer", "sample or full")),
    Bad("config-missing", f"iris.csv {O} --config gone.toml", 66, ("gone.toml", "--config")),
    Bad("config-broken", f"iris.csv {O} --config broken.toml", 2, ("broken.toml", "line 2")),
    Bad(
        "config-keys", f"iris.csv {O} --config several.toml", 2,
        (
            "3 problems", "several.toml:2: modle",
            "mean model?", "several.toml:3: on-null", "several.toml:4: worker",
        ),
    ),
    Bad(
        "config-values", f"iris.csv {O} --config values.toml", 2,
        (
            "4 problems", "values.toml:2: infer",
            "values.toml:3: limit", "values.toml:5: batch_rows", "values.toml:6",
        ),
    ),
    Bad(
        "config-beside-connects", f"connects/iris.csv {O}", 2,
        (
            "3 problems", "batchserve.toml:2: scheduler",
            "batchserve.toml:3: overwrite", "toml:4: keep", "--config",
        ),
    ),
    Bad(
        "config-beside-escapes", f"escapes/iris.csv {O}", 2,
        ("batchserve.toml:1: model", "../model.onnx", "lies outside", "--model"),
    ),
)  # fmt: skip


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_bad_input_is_told_and_nothing_is_written(
    bad: Bad, odd_files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad command ends with its documented code, names the thing and the way out, and writes nothing."""
    monkeypatch.chdir(odd_files)
    before = listing(odd_files)

    done = run(capsys, "score", *shlex.split(bad.command))

    assert [piece for piece in bad.says if piece not in done.err] == [], done.err
    assert done.code == bad.code, done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert listing(odd_files) == before


def test_modes_that_forbid_are_told(tmp_path: Path) -> None:
    """A file that may not be read and a folder that may not be written to are exit 77, both by name."""
    shutil.copy(IRIS, tmp_path / "secret.csv")
    (tmp_path / "shut").mkdir()
    (tmp_path / "secret.csv").chmod(0)
    (tmp_path / "shut").chmod(0o500)
    command = ("score", tmp_path / "secret.csv", tmp_path / "shut" / O, "-m", IRIS_MODEL)

    done = spawn(*command, before=NO_OVERRIDE)

    assert done.code == 77, done.err
    assert "2 problems" in done.err
    assert f"{tmp_path}/secret.csv: Permission denied" in done.err
    assert f"{tmp_path}/shut: Permission denied" in done.err
    assert "check who owns it" in done.err
    assert "Traceback" not in done.err
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["secret.csv", "shut"]


def test_independent_problems_are_told_together(
    odd_files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing model, two missing inputs and an output that exists are one message of four problems."""
    monkeypatch.chdir(odd_files)

    done = run(capsys, "score", "a.csv", "b.csv", "ours.parquet", "-m", "gone.onnx")

    assert done.err.count("error:") == 1
    assert "4 problems" in done.err
    for name in (
        "a.csv: no such input",
        "b.csv: no such input",
        "ours.parquet: exists",
        "gone.onnx: no such",
    ):
        assert name in done.err


def test_wishes_that_do_not_fit_are_told_together(
    odd_files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong --on-null, --keep and --outputs are one message, each with its hint."""
    monkeypatch.chdir(odd_files)
    wishes = ("--on-null", "maybe", "--keep", "specis", "--outputs", "lable,probabilty")

    done = run(capsys, "score", "iris.csv", O, "-m", "model.onnx", *wishes)

    assert "4 problems" in done.err
    for hint in ("reject, nan or fill", "mean species?", "mean label?", "mean probability?"):
        assert hint in done.err


@pytest.mark.parametrize("output", ["out.parquet", "out"])
def test_overwrite_replaces_what_batchserve_wrote(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--overwrite replaces an output of ours, a file or a dataset, by the new rows."""
    bs.score(IRIS, tmp_path / output, model=IRIS_MODEL)

    done = run(capsys, "score", IRIS, tmp_path / output, "-m", IRIS_MODEL, "--overwrite", "--limit", "7")

    assert done.code == 0, done.err
    assert pq.read_table(tmp_path / output).num_rows == 7


def test_rows_depend_accepts_a_model_that_mixes_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--rows-depend scores with a model that the proof refuses."""
    model = mixer(tmp_path / "mixer.onnx", "sepal_length")

    done = run(capsys, "score", IRIS, tmp_path / O, "-m", model, "--rows-depend")

    assert done.code == 0, done.err
    assert pq.read_table(tmp_path / O).num_rows == 150


def test_prefix_settles_a_clash(odd_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column named like an output stays beside the prediction when --prefix names them apart."""
    done = run(capsys, "score", odd_files / "label.csv", tmp_path / O, "-m", IRIS_MODEL, "--prefix", "model_")

    assert done.code == 0, done.err
    assert {"label", "model_label"} <= set(pq.read_schema(tmp_path / O).names)
