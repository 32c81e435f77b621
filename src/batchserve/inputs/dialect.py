"""How a text file is written: what separates and quotes its fields, where its rows begin."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from pydantic import BaseModel

from batchserve.errors import BatchserveError, UsageError, raise_all
from batchserve.inputs import encodings

LineEnd = Literal["LF", "CRLF", "CR"]


class Dialect(BaseModel, frozen=True):
    """How a text file is written. The defaults are the common CSV."""

    delimiter: str = ","
    quote: str | None = '"'
    escape: str | None = None
    """The character that takes the meaning from the one after it."""
    header: bool = True
    """Whether the first record names the columns."""
    skip_lines: int = 0
    """Lines before the header, or before the first record where there is no header."""
    encoding: str = encodings.UTF_8
    line_end: LineEnd = "LF"

    @property
    def terminator(self) -> bytes:
        """The last byte of a record."""
        return b"\r" if self.line_end == "CR" else b"\n"

    @property
    def streamed(self) -> bool:
        """Whether the file has to be decoded from its start, and so cannot be cut."""
        return encodings.is_streamed(self.encoding)

    def as_utf8(self, raw: bytes) -> bytes:
        """Return whole records as UTF-8; those of a streamed file are so already.

        Raises:
            UnicodeDecodeError: Some byte is no character.
        """
        return raw if self.streamed else encodings.recoded(raw, self.encoding)

    def __str__(self) -> str:
        """Return it in words.

        Example:
            >>> print(Dialect(delimiter=";", skip_lines=2, line_end="CRLF"))
            ';' between fields, '"' quotes, header on line 3, CRLF, utf-8
        """
        quotes = f"{shown(self.quote)} quotes" if self.quote else "no quotes"
        escapes = [f"{shown(self.escape)} escapes"] if self.escape else []
        first = self.skip_lines + 1
        header = f"header on line {first}" if self.header else f"no header, rows from line {first}"
        between = f"{shown(self.delimiter)} between fields"
        return ", ".join([between, quotes, *escapes, header, self.line_end, self.encoding])


def shown(character: str) -> str:
    r"""Return a character in quotes that a reader can tell from it.

    Example:
        >>> shown("\t"), shown('"'), shown("'")
        ('tab', '\'"\'', '"\'"')
    """
    return {"\t": "tab", " ": "blank"}.get(character) or repr(character)


COMMON = Dialect()


@dataclass(frozen=True)
class Asked:
    """What the user says of the dialect; None where it is to be found."""

    delimiter: str | None = None
    quote: str | None = None
    """A character, or `none`."""
    escape: str | None = None
    """A character, or `none`."""
    header: bool | None = None
    skip_lines: int | None = None
    encoding: str | None = None

    @classmethod
    def of(cls, job: Any) -> Self:
        """Read it out of a job.

        Raises:
            UsageError: A character cannot be what it is said to be; all problems are told.
        """
        asked = cls(
            delimiter=_NAMES.get(job.delimiter, job.delimiter) if job.delimiter else None,
            quote=job.quote,
            escape=job.escape,
            header=None if job.header is None else job.header == "yes",
            skip_lines=job.skip_lines,
            encoding=encodings.named(job.encoding) if job.encoding else None,
        )
        if job.format == "tsv" and not asked.delimiter:
            asked = replace(asked, delimiter="\t")
        if asked.escape == (asked.quote or '"'):  # a quote that escapes a quote is a doubled one
            asked = replace(asked, escape=NONE)
        raise_all(list(asked.problems()))
        return asked

    def problems(self) -> Iterator[BatchserveError]:
        """Give what is wrong with the characters."""
        said = {"delimiter": self.delimiter, "quote": self.quote, "escape": self.escape}
        characters = {name: text for name, text in said.items() if text is not None and text != NONE}
        for name, text in characters.items():
            if len(text) != 1 or not text.isascii() or text in "\r\n\0":
                yield UsageError(f"--{name} {text!r}: is not one ASCII character", _CHARACTERS[name])
        if self.delimiter == NONE:
            yield UsageError("--delimiter none: fields need one", _CHARACTERS["delimiter"])
        if self.delimiter and self.delimiter in {self.quote or '"', self.escape}:
            message = f"--delimiter {self.delimiter}: quotes or escapes texts, too"
            yield UsageError(message, "say another for one of them, or --quote none")

    def misplaced(self, kind: str, *allowed: str) -> Iterator[BatchserveError]:
        """Give a problem for what the user said and files of this kind do not have."""
        for name in self.said:
            if name not in allowed:
                flag = name.replace("_", "-")
                yield UsageError(f"--{flag} is for CSV: {kind} has none", "leave it out")

    @property
    def said(self) -> tuple[str, ...]:
        """The names of what the user says."""
        return tuple(name for name, value in asdict(self).items() if value is not None)


NONE = "none"
_NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " ", "blank": " "}
_CHARACTERS = {
    "delimiter": "say one like --delimiter ';' or --delimiter tab",
    "quote": 'say one like --quote "\'", or --quote none',
    "escape": "say one like --escape '\\', or --escape none",
}


@dataclass(frozen=True)
class Found:
    """The dialect of a job's files, and how it is known."""

    dialect: Dialect
    sure: bool = True
    said: tuple[str, ...] = ()
    """What the user said; the rest was found."""

    @property
    def doubtful(self) -> bool:
        """Whether people should be told: it is not sure, or rows may be taken for something else."""
        dialect = self.dialect
        left_out = dialect.skip_lines and "skip_lines" not in self.said
        nameless = not dialect.header and "header" not in self.said
        return bool(not self.sure or left_out or nameless)

    def __str__(self) -> str:
        """Return it in words.

        Example:
            >>> str(Found(dialect=Dialect(), sure=False, said=("delimiter",))).partition("; ")[2]
            'delimiter as said, the rest found, not sure'
        """
        named = ", ".join(name.replace("_", " ") for name in self.said)
        how = f"{named} as said, the rest found" if self.said else "found"
        return f"{self.dialect}; {how}, {'sure' if self.sure else 'not sure'}"


PLAIN = Found(dialect=COMMON)
