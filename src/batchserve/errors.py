"""Every error a user can meet, its exit code, and how several are told at once.

    BatchserveError            1  a bug in batchserve: report it
    ├── UsageError             2  change the command or the config
    ├── DataError             65  the data: corrupt, drifted, or rows that cannot be scored
    ├── NotFoundError         66  an input, model or config file is not there
    ├── ClusterError          69  the cluster is unreachable, lost or mismatched
    ├── ModelError            70  the model is unusable, or it and the data do not fit
    │   └── RunError          70  the model failed on rows that it was given
    │       └── CrashError    70  it killed its process on them
    ├── OutputError           73  the output exists, is an input, or cannot be made
    ├── StorageError          74  the disk is full, or input/output failed
    │   └── TransientError    74  reading failed, and again when it was tried again
    ├── RetryError            75  run the same command again
    │   ├── MemoryShortError  75  memory ran out
    │   └── StallError        75  a run of the model did not end in time
    ├── AccessError           77  permission denied
    └── StoppedError         130  stopped by Ctrl-C (143: by SIGTERM); the same command continues

The codes follow `sysexits.h`, so that a scheduler can act on them. This module imports
nothing of ours. `__init__` takes only `(message, hint)`, both handed to `Exception`, because
domain arguments do not survive pickling between processes.
"""

import difflib
import errno
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, TypeVar

T = TypeVar("T")

_SECRETS = (
    (re.compile(r"((?<![\w.+-])[a-z][a-z0-9+.-]*:/{1,2})[^/\s'\"]+@", re.IGNORECASE), r"\1***@"),
    (
        re.compile(
            r"((?<![\w.-])[\w.-]*?(?:secret|passw|\bpwd\b|token|signature|credential|access_?key|api_?key|account_?key"
            r"|X-Amz-|connection_string|\bsig\b|\bsas\b)[\w.-]*=['\"]?)[^&\s'\",;]+",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
)


def redacted(text: str) -> str:
    """Take secrets out of a text: user and password of a URL, signatures, keys, tokens.

    Example:
        >>> redacted("s3://me:hunter2@bucket/a.csv?X-Amz-Signature=abc&part=1")
        's3://***@bucket/a.csv?X-Amz-Signature=***&part=1'
    """
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


class BatchserveError(Exception):
    """Base of all errors: what is wrong with which thing, and what to do about it."""

    exit_code: ClassVar[int] = 1
    singles: "tuple[BatchserveError, ...]" = ()
    """The problems that this error tells together; empty when it is one."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(redacted(message), redacted(hint))
        self.message, self.hint = self.args

    def about(self, name: str) -> "BatchserveError":
        """Return the same error as one of `name`, which is one of several things."""
        if self.singles:
            return _together([single.about(name) for single in self.singles])
        return type(self)(f"{name}: {self.message}", self.hint)

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(BatchserveError):
    """The command line, the environment or the config file says something impossible."""

    exit_code = 2


class DataError(BatchserveError):
    """The data is corrupt, differs between files, or has rows that cannot be scored."""

    exit_code = 65


class NotFoundError(BatchserveError):
    """An input, model or config file does not exist."""

    exit_code = 66

    @classmethod
    def of(cls, kind: str, path: str, candidates: Iterable[str] = ()) -> "NotFoundError":
        """Build the error for a missing `kind` of file, with the nearest existing names."""
        hint = did_you_mean(path.rsplit("/", 1)[-1], candidates)
        return cls(f"{path}: no such {kind}", hint or "check the path")


class ClusterError(BatchserveError):
    """The Dask cluster cannot be reached, was lost, or runs other versions."""

    exit_code = 69


class ModelError(BatchserveError):
    """The model is corrupt or unsupported, or it and the data do not fit together."""

    exit_code = 70


class RunError(ModelError):
    """The model failed on the rows that it was given: some of them may be at fault."""


class CrashError(RunError):
    """The model killed its process on the rows that it was given."""


class OutputError(BatchserveError):
    """The output exists already, is an input, or cannot be made where it was asked for."""

    exit_code = 73


class StorageError(BatchserveError):
    """A disk is full or an input/output call failed."""

    exit_code = 74


class TransientError(StorageError):
    """Reading failed in a way that often passes: worth another try."""


class RetryError(BatchserveError):
    """Nothing is wrong with the job: run the same command again."""

    exit_code = 75


class MemoryShortError(RetryError):
    """Memory ran out; fewer rows or workers at once need less."""


class StallError(RetryError):
    """A run of the model did not end in time and was stopped."""


class AccessError(BatchserveError):
    """The operating system refused access."""

    exit_code = 77


class StoppedError(BatchserveError):
    """Ctrl-C: the same command continues from the finished parts."""

    exit_code = 130


class TerminatedError(StoppedError):
    """SIGTERM: the same command continues from the finished parts."""

    exit_code = 143


_MORE_MEMORY = "give it more, or fewer --workers, then run the same command again"


@contextmanager
def told() -> Iterator[None]:
    """Turn what the system refuses, and nobody nearer to it has told, into ours.

    Raises:
        BatchserveError: Memory ran out, or something is wrong with a file.
    """
    try:
        yield
    except MemoryError as error:
        raise MemoryShortError("memory ran out", _MORE_MEMORY) from error
    except OSError as error:
        if error.filename is None:  # not about a file: a broken connection, say
            raise
        raise from_os(error, str(error.filename)) from error


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return a hint with the closest of `candidates`, or an empty text.

    Example:
        >>> did_you_mean("dep_dealy", ["dep_delay", "arr_delay"])
        'did you mean dep_delay?'
    """
    known = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return f"did you mean {known[close[0]]}?" if close else ""


def raise_all(problems: Sequence[BatchserveError]) -> None:
    """Raise every problem as one error of the first one's kind; do nothing if there is none.

    Raises:
        BatchserveError: With one line per problem, each followed by its hint.
    """
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise _together([single for problem in problems for single in problem.singles or (problem,)])


def _together(singles: Sequence[BatchserveError]) -> BatchserveError:
    lines = [f"  {p.message}" + (f"  ({p.hint})" if p.hint else "") for p in singles]
    together = type(singles[0])(f"{len(singles)} problems\n" + "\n".join(lines))
    together.singles = tuple(singles)
    return together


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the name of one of several things before what is wrong with it; an empty name changes nothing.

    Raises:
        BatchserveError: What the block raises, with the name.
    """
    try:
        yield
    except BatchserveError as error:
        if not name:
            raise
        raise error.about(name) from error


class Problems:
    """Collects what is wrong, so that all of it can be told at once."""

    def __init__(self) -> None:
        self._problems: list[BatchserveError] = []

    def attempt(self, call: Callable[[], T], otherwise: T) -> T:
        """Return what `call` gives; if it fails, remember why and return `otherwise`."""
        try:
            return call()
        except BatchserveError as problem:
            self._problems.append(problem)
            return otherwise

    def check(self) -> None:
        """Raise everything that was remembered as one error."""
        raise_all(self._problems)


def from_os(error: OSError, path: str) -> BatchserveError:
    """Translate an operating system error about `path` into one of ours."""
    reason = error.strerror or str(error)
    if error.errno == errno.ENOMEM:
        return MemoryShortError(f"{path}: memory ran out", _MORE_MEMORY)
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{path}: {reason}", "check the path")
    if isinstance(error, PermissionError):
        return AccessError(f"{path}: {reason}", "check who owns it and its mode")
    return StorageError(f"{path}: {reason}", "free space or check the disk, then run it again")
