"""Packed text files: which codec, and their bytes unpacked, whole or not at all.

The standard library's readers of bzip2 and xz take what follows a stream for the end of the
file. A damaged second stream would so be left out without a word; here it is an error.
"""

import io
import lzma
import re
import zlib
from bz2 import BZ2Decompressor
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from batchserve.errors import DataError
from batchserve.inputs import Codec

SUFFIXES: dict[str, Codec] = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd", ".xz": "xz"}
MAGIC_BYTES = 10
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_BZIP2_BLOCKS = (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90")
_READ_BYTES = 1 << 18
_PIECE_BYTES = 1 << 18
"""What is unpacked at once: as exact as this is the place where a fault is told."""


def codec_of(magic: bytes) -> Codec | None:
    r"""Return how a file is packed, from its first bytes; text is never taken for packed.

    Example:
        >>> codec_of(b"\x1f\x8b\x08\x00"), codec_of(b"BZh9,column\n")
        ('gzip', None)
    """
    if magic.startswith(b"\x1f\x8b"):
        return "gzip"
    if magic.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    if magic.startswith(_ZSTD_MAGIC) or _ZSTD_SKIPPABLE.match(magic):
        return "zstd"
    return "bzip2" if magic.startswith(b"BZh") and magic[4:MAGIC_BYTES] in _BZIP2_BLOCKS else None


@contextmanager
def unpacked(path: str, codec: Codec) -> Iterator[BinaryIO]:
    """Open a packed file to be read as what it holds, from the start on; seeking goes forward only.

    Raises:
        DataError: The file is damaged, cut off, or followed by something else.
    """
    file = _Unpacked(path, codec)
    with file:
        yield cast("BinaryIO", file)


_SAMPLE_BYTES = 1 << 20
_MOST_BYTES = 64 << 20
_LIKELY_RATIO = 4


def promised_bytes(path: str, codec: Codec, size_bytes: int) -> int:
    """Estimate how much a packed file holds, from how far its first MiB goes.

    Args:
        path: The file.
        codec: How it is packed.
        size_bytes: Its stored size.
    """
    with Path(path).open("rb") as file:
        head = file.read(_SAMPLE_BYTES)
    try:
        unpacked, used = _DECOMPRESS[codec](head)
    except _faults():  # told when it is read
        return size_bytes
    return int(size_bytes * (unpacked / used)) if unpacked and used else size_bytes * _LIKELY_RATIO


def _zlib_head(head: bytes) -> tuple[int, int]:
    stream = zlib.decompressobj(wbits=31)
    unpacked = stream.decompress(head, _MOST_BYTES)
    return len(unpacked), len(head) - len(stream.unconsumed_tail) - len(stream.unused_data)


def _stream_head(make: Callable[[], Any], head: bytes) -> tuple[int, int]:
    stream = make()
    unpacked = stream.decompress(head, _MOST_BYTES)
    return len(unpacked), len(head) - len(stream.unused_data)


def _zstd_head(head: bytes) -> tuple[int, int]:
    import pyarrow as pa

    unpacked = 0
    with suppress(OSError), pa.CompressedInputStream(pa.BufferReader(head), "zstd") as stream:
        while unpacked < _MOST_BYTES and (block := stream.read(_READ_BYTES)):
            unpacked += len(block)
    return unpacked, len(head)


class _Unpacked(io.RawIOBase):
    """What a packed file holds, read on and on; every fault is told with its place."""

    def __init__(self, path: str, codec: Codec) -> None:
        super().__init__()
        self._path, self._codec = path, codec
        self._at = 0
        self._inner: Any = _OPEN[codec](path)

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes; none at the end of the file."""
        try:
            data: bytes = self._inner.read(_PIECE_BYTES if size < 0 else min(size, _PIECE_BYTES))
        except MemoryError:
            raise
        except _faults() as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the system, not of a codec
                raise
            if "too much memory" in str(error):
                message = f"{self._path}: is packed in a way that needs more than 128 MiB to unpack"
                raise DataError(message, "pack it again with zstd --long=27 or less") from error
            place = f"after byte {self._at:,} of what it holds"
            message = f"{self._path}: the {self._codec} stream is damaged or cut off {place} ({error})"
            raise DataError(message, "fetch or pack the file again") from error
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to byte `offset`, by reading what lies between."""
        if whence != io.SEEK_SET or offset < self._at:
            raise io.UnsupportedOperation("a packed file is read forward only")
        while self._at < offset and self.read(min(_READ_BYTES, offset - self._at)):
            pass
        return self._at

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._at

    def close(self) -> None:
        """Close the file underneath."""
        self._inner.close()
        super().close()


class _Streams:
    """Streams one after another, as `cat a.bz2 b.bz2` makes them; nothing else may follow."""

    def __init__(self, path: str, make: Callable[[], Any], padding: bytes = b"") -> None:
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115  closed by close()
        self._make, self._padding = make, padding
        self._decompressor = make()
        self._pending = b""

    def read(self, size: int) -> bytes:
        while True:
            if self._decompressor.eof and not self._next_stream():
                return b""
            if self._decompressor.needs_input and not self._pending:
                self._pending = self._file.read(_READ_BYTES)
                if not self._pending:
                    raise EOFError("it ends in the middle of a stream")
            pending, self._pending = self._pending, b""
            if data := self._decompressor.decompress(pending, size):
                return cast("bytes", data)

    def _next_stream(self) -> bool:
        """Begin the next stream, if there is one; zeros may pad what is between."""
        rest = self._decompressor.unused_data.lstrip(self._padding)
        while not rest and (block := self._file.read(_READ_BYTES)):
            rest = block.lstrip(self._padding)
        if rest:
            self._decompressor, self._pending = self._make(), rest
        return bool(rest)

    def close(self) -> None:
        self._file.close()


def _gzip() -> Any:
    from isal import igzip_lib

    return igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)


def _zstd(path: str) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(path), "zstd")


_OPEN: dict[Codec, Callable[[str], Any]] = {
    "gzip": partial(_Streams, make=_gzip, padding=b"\0"),
    "bzip2": partial(_Streams, make=BZ2Decompressor),
    "zstd": _zstd,
    "xz": partial(_Streams, make=partial(lzma.LZMADecompressor, lzma.FORMAT_XZ), padding=b"\0"),
}


_DECOMPRESS: dict[Codec, Callable[[bytes], tuple[int, int]]] = {
    "gzip": _zlib_head,
    "bzip2": partial(_stream_head, BZ2Decompressor),
    "zstd": _zstd_head,
    "xz": partial(_stream_head, partial(lzma.LZMADecompressor, lzma.FORMAT_XZ)),
}


def _faults() -> tuple[type[Exception], ...]:
    from isal import igzip_lib

    return EOFError, OSError, zlib.error, lzma.LZMAError, cast("type[Exception]", igzip_lib.IsalError)
