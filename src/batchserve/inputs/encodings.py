"""Encodings of text files: which there are, how they are recognised, and how they become UTF-8.

UTF-8 is read as it is. An encoding of one byte per character that holds ASCII is cut at its
bytes and decoded in chunks, so that offsets are those of the file. All others (UTF-16, UTF-32,
Shift JIS, ...) are decoded as a stream from the start of the file, which cannot be cut: offsets
are then those of the UTF-8 text.
"""

import codecs
import io
from functools import lru_cache
from typing import BinaryIO, cast

from batchserve.errors import UsageError

UTF_8 = "utf-8"
BOM = codecs.BOM_UTF8
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
"""The longer ones first: UTF-32-LE starts like UTF-16-LE."""
_NOT_OF_FILES = {"unicode_escape", "raw_unicode_escape", "idna", "punycode", "undefined"}
_ASCII = bytes(range(128))
_HINT = "say a name that Python knows: latin-1, cp1252, utf-16, shift_jis, gb18030"
_READ_BYTES = 1 << 20


@lru_cache
def named(name: str) -> str:
    """Return the one name of an encoding.

    Raises:
        UsageError: There is no such encoding of text.

    Example:
        >>> named("Latin1"), named("UTF8"), named("utf-8-sig")
        ('iso8859-1', 'utf-8', 'utf-8')
    """
    problem = UsageError(f"--encoding {name}: no such encoding of text", _HINT)
    try:
        found = codecs.lookup(name).name
        b"a".decode(found, "replace")
    except (LookupError, ValueError) as error:
        raise problem from error
    if found.replace("-", "_") in _NOT_OF_FILES:
        raise problem
    return UTF_8 if found in {"utf-8", "utf-8-sig", "ascii"} else found


def marked(head: bytes) -> str | None:
    """Return the encoding that the first bytes of a file name by a mark, or None.

    Example:
        >>> marked("a,b".encode("utf-16")), marked(b"a,b")
        ('utf-16', None)
    """
    return next((name for mark, name in _MARKS if head.startswith(mark)), None)


def shown(name: str) -> str:
    """Return the name of an encoding as people write it.

    Example:
        >>> shown("utf-16"), shown("cp1252")
        ('UTF-16', 'cp1252')
    """
    return name.upper() if name.startswith("utf") else name


@lru_cache
def is_streamed(name: str) -> bool:
    """Whether text of this encoding has to be decoded from its start.

    Example:
        >>> is_streamed("utf-8"), is_streamed("cp1252"), is_streamed("utf-16"), is_streamed("shift_jis")
        (False, False, True, True)
    """
    if name == UTF_8 or name.startswith("iso2022"):  # the latter shift by escape sequences
        return name != UTF_8
    single = len(bytes(range(256)).decode(name, "replace")) == 256  # noqa: PLR2004  one character per byte
    return not single or _ASCII.decode(name, "replace") != _ASCII.decode("ascii")


def recoded(raw: bytes, name: str) -> bytes:
    """Return text of an encoding that is not streamed as UTF-8.

    Raises:
        UnicodeDecodeError: Some byte is no character.
    """
    return raw if name == UTF_8 else raw.decode(name).encode()


def _mark_fault(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return _FAULT, error.end


_FAULT = "\udcff"
"""A lone surrogate: as UTF-8 it is malformed, so that the record that it is in is refused."""
codecs.register_error("batchserve.fault", _mark_fault)


class Utf8File(io.RawIOBase):
    """A binary file of any encoding, as UTF-8 without a mark; bytes that are no text stay malformed.

    It can be read from its start and wound forward.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(name)("batchserve.fault")
        self._ready = b""
        self._position = 0
        self._ended = False

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes of UTF-8; none at the end."""
        while not self._ready and not self._ended:
            raw = self._file.read(_READ_BYTES)
            self._ended = not raw
            text = self._decoder.decode(raw, final=not raw)
            text = text.removeprefix("\ufeff") if self._position == 0 else text
            self._ready = text.encode("utf-8", "surrogatepass")
        stop = size if size >= 0 else len(self._ready)
        piece, self._ready = self._ready[:stop], self._ready[stop:]
        self._position += len(piece)
        return piece

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Wind forward to byte `offset` of the UTF-8 text.

        Raises:
            UnsupportedOperation: It would have to go back.
        """
        if whence != io.SEEK_SET or offset < self._position:
            raise io.UnsupportedOperation("a decoded file only winds forward")
        while self._position < offset and self.read(min(_READ_BYTES, offset - self._position)):
            pass
        return self._position


def as_utf8(file: BinaryIO, name: str) -> BinaryIO:
    r"""Return an open file that gives UTF-8, if its bytes cannot be cut in their own encoding.

    Example:
        >>> as_utf8(io.BytesIO("é".encode("utf-16")), "utf-16").read()
        b'\xc3\xa9'
    """
    return cast("BinaryIO", Utf8File(file, name)) if is_streamed(name) else file
