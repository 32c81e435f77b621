"""Errors: a closed set that crosses processes, with codes a scheduler can act on."""

import pickle
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import dask
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from batchserve import errors
from batchserve.errors import (
    AccessError,
    BatchserveError,
    DataError,
    ModelError,
    NotFoundError,
    StorageError,
    UsageError,
    did_you_mean,
    from_os,
    raise_all,
)
from batchserve.model import translated_errors

DOCUMENTED = {1, 2, 65, 66, 69, 70, 73, 74, 75, 77, 130, 143}


def tree(root: type[BatchserveError]) -> Iterator[type[BatchserveError]]:
    yield root
    for kind in root.__subclasses__():
        yield from tree(kind)


KINDS = sorted(tree(BatchserveError), key=lambda kind: kind.__name__)
RUNTIME_ERRORS = sorted(
    name
    for name, thing in vars(runtime).items()
    if isinstance(thing, type) and issubclass(thing, BaseException)
)


def raised(kind: type[BatchserveError]) -> None:
    """Raise an error as a worker would."""
    raise kind("what is wrong", "what to do")


def test_exit_codes_are_the_documented_ones() -> None:
    """Every error has a documented exit code, and every documented failure has an error."""
    assert {kind.exit_code for kind in KINDS} == DOCUMENTED


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """The tree that errors.py draws names the errors, and their codes."""
    drawn = dict(re.findall(r"(\w+Error) +(\d+)", str(errors.__doc__)))

    by_a_comment = {"TerminatedError"}  # drawn beside StoppedError, as its code 143
    known = {kind.__name__: str(kind.exit_code) for kind in KINDS if kind.__name__ not in by_a_comment}
    assert drawn == {"BatchserveError": "1", **known}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors_survive_pickle(kind: type[BatchserveError]) -> None:
    """An error comes out of a pickle with its class, message and hint."""
    copy = pickle.loads(pickle.dumps(kind("what is wrong", "what to do")))  # noqa: S301  our own

    assert (type(copy), copy.message, copy.hint) == (kind, "what is wrong", "what to do")
    assert str(copy) == "what is wrong\nhint: what to do"


def test_errors_survive_a_process_pool() -> None:
    """An error raised in a process of a pool arrives as itself."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        arrived = [pool.submit(raised, kind).exception() for kind in KINDS]

    assert [(type(error), str(error)) for error in arrived] == [
        (kind, "what is wrong\nhint: what to do") for kind in KINDS
    ]


def test_errors_survive_dask_processes() -> None:
    """An error raised in Dask's processes scheduler arrives as itself."""
    with pytest.raises(ModelError) as arrived:
        dask.delayed(raised)(ModelError).compute(scheduler="processes", num_workers=1)

    assert (arrived.value.message, arrived.value.hint) == ("what is wrong", "what to do")


@pytest.mark.parametrize("name", RUNTIME_ERRORS)
def test_every_error_of_onnxruntime_is_translated(name: str) -> None:
    """Whatever class onnxruntime raises becomes a ModelError with the file's name and a hint."""
    kind = getattr(runtime, name)

    with pytest.raises(ModelError) as told, translated_errors("some/model.onnx"):
        raise kind("[ONNXRuntimeError] : 2 : it does not work\nand more of it")

    assert told.value.message == "some/model.onnx: 2 : it does not work"
    assert told.value.hint


def test_onnxruntime_exports_its_errors_where_they_are_looked_for() -> None:
    """The list that the test above walks is not empty: onnxruntime has 15 classes or more."""
    assert len(RUNTIME_ERRORS) >= 15


@pytest.mark.parametrize(
    "error",
    [
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        ValueError("wrong feed"),
        KeyError(),
        UserWarning("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_of_the_runtime_are_translated(error: Exception) -> None:
    """Errors of other classes, empty ones and warnings become a ModelError too."""
    with pytest.raises(ModelError, match=r"^m\.onnx: ."), translated_errors("m.onnx"):
        raise error


def test_model_errors_pass_as_they_are() -> None:
    """A ModelError of ours is not wrapped a second time."""
    with pytest.raises(ModelError) as told, translated_errors("m.onnx"):
        raise ModelError("already told", "hint")

    assert told.value.message == "already told"


@pytest.mark.parametrize(
    ("name", "candidates", "hint"),
    [
        ("dep_dealy", ["dep_delay", "arr_delay"], "did you mean dep_delay?"),
        ("CARRIER", ["carrier"], "did you mean carrier?"),
        ("carrier", ["Carrier", "x"], "did you mean Carrier?"),
        ("zzz", ["dep_delay"], ""),
        ("a", [], ""),
    ],
)
def test_did_you_mean(name: str, candidates: list[str], hint: str) -> None:
    """The nearest name is offered whatever its case, and none when nothing is near."""
    assert did_you_mean(name, candidates) == hint


def test_missing_files_get_the_nearest_name() -> None:
    """A missing file is told with the nearest name beside it, else with what to check."""
    near = NotFoundError.of("input", "data/flihgts.csv", ["flights.csv"])
    far = NotFoundError.of("model", "m.onnx")

    assert (near.message, near.hint) == ("data/flihgts.csv: no such input", "did you mean flights.csv?")
    assert (far.message, far.hint) == ("m.onnx: no such model", "check the path")


def test_no_problem_raises_nothing() -> None:
    """Without problems raise_all does nothing."""
    raise_all([])


def test_one_problem_is_raised_as_it_is() -> None:
    """A single problem keeps its own class, message and hint."""
    problem = DataError("one", "way out")

    with pytest.raises(DataError) as told:
        raise_all([problem])

    assert told.value is problem


def test_several_problems_are_one_error() -> None:
    """Several problems are one error of the first one's class, with a line and a hint for each."""
    with pytest.raises(UsageError) as told:
        raise_all([UsageError("first", "mend it"), ModelError("second")])

    assert told.value.message == "2 problems\n  first  (mend it)\n  second"


def test_problems_of_problems_are_told_flat() -> None:
    """Problems that were gathered before are told one by one, and counted so."""
    with pytest.raises(DataError) as inner:
        raise_all([DataError("a"), DataError("b")])

    with pytest.raises(DataError) as told:
        raise_all([inner.value, ModelError("c", "way out")])

    assert told.value.message == "3 problems\n  a\n  b\n  c  (way out)"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError(2, "No such file or directory"), NotFoundError),
        (PermissionError(13, "Permission denied"), AccessError),
        (OSError(28, "No space left on device"), StorageError),
        (OSError("only words"), StorageError),
    ],
    ids=["missing", "permission", "full", "words"],
)
def test_operating_system_errors_get_our_codes(error: OSError, kind: type[BatchserveError]) -> None:
    """An error of the operating system becomes ours, with the path, the reason and a hint."""
    told = from_os(error, "some/path")

    assert type(told) is kind
    assert told.message == f"some/path: {error.strerror or 'only words'}"
    assert told.hint


def test_problems_of_one_of_several_things_have_its_name() -> None:
    """Every problem inside `naming` gets the name, with its own hint and the kind of the first."""
    problems = [errors.ModelError("no x", "map x"), errors.UsageError("no y")]

    with pytest.raises(errors.ModelError) as told, errors.naming("b"):
        errors.raise_all(problems)
    with pytest.raises(errors.UsageError) as plain, errors.naming(""):
        raise problems[1]

    assert told.value.message == "2 problems\n  b: no x  (map x)\n  b: no y"
    assert [single.message for single in told.value.singles] == ["b: no x", "b: no y"]
    assert plain.value is problems[1]
