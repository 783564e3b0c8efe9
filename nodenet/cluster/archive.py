"""A report as one tar file. Everything that is added is redacted."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import time
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from types import TracebackType
from typing import IO, Any, Self, cast

from nodenet.cluster import redact

# Bytes of one member that are kept; bytes and members of a node's part that are read.
MOST_BYTES = 32 << 20
MOST_TOTAL = 256 << 20
MOST_MEMBERS = 500


class Report:
    """Use it as a context manager. All names are below the folder `top`."""

    def __init__(self, file: IO[bytes], top: str) -> None:
        self._top = top
        self._tar = tarfile.open(fileobj=file, mode="w:gz")  # noqa: SIM115 - closed by __exit__
        self.errors: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Writes errors.txt, so that a part that is missing is not taken for one that is empty."""
        if kind is None:
            self._put("errors.txt", "".join(f"{text}\n" for text in self.errors))
        self._tar.close()

    def error(self, text: str) -> None:
        """A part that could not be collected."""
        self.errors.append(text)

    def text(self, name: str, text: str) -> None:
        self._put(name, redact.text(text))

    def document(self, name: str, value: Any) -> None:
        """As JSON."""
        self._put(name, json.dumps(redact.obj(value), indent=1, ensure_ascii=False) + "\n")

    def embed(self, folder: str, data: bytes) -> None:
        """Add the members of another report, which a node wrote, below `folder`. What cannot be read is an error of
        this report."""
        members = _members(data)
        while True:
            # Only the reading: an error of the report's own file is raised.
            try:
                name, text = next(members, ("", ""))
            except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
                self.error(f"{folder}: the rest cannot be read: {error or type(error).__name__}")
                return
            if not name:
                return
            if text is None:
                self.error(f"{folder}: {name}: left out")
            else:
                self.text(f"{folder}/{name}", text)

    def _put(self, name: str, text: str) -> None:
        data = text.encode(errors="replace")[:MOST_BYTES]
        info = tarfile.TarInfo(f"{self._top}/{name}")
        info.size, info.mtime, info.mode = len(data), int(time.time()), 0o600
        self._tar.addfile(info, io.BytesIO(data))


def _members(data: bytes) -> Iterator[tuple[str, str | None]]:
    """Names, without the top folder, and texts; None for what is left out. The node's report is input as any other: it
    may not name a place outside of its folder, nor fill the memory."""
    with tarfile.open(fileobj=cast("IO[bytes]", _Bounded(data)), mode="r:") as tar:
        for number, member in enumerate(tar):
            if number >= MOST_MEMBERS:
                raise tarfile.ReadError(f"it has more than {MOST_MEMBERS} members")
            path = PurePosixPath(member.name)
            content = None
            if not path.is_absolute() and ".." not in path.parts:
                # A sparse file may be long without bytes in the archive.
                content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
            if content is None:
                yield member.name or "a member without a name", None
            else:
                text = content.read(MOST_BYTES).decode(errors="replace")
                yield "/".join(path.parts[1:]) or path.name or "noname", text


class _Bounded:
    """The content of a gzip file, up to MOST_TOTAL bytes: a small one may have any length."""

    def __init__(self, data: bytes) -> None:
        self._file = gzip.GzipFile(fileobj=io.BytesIO(data))

    def read(self, size: int) -> bytes:
        self._check(self._file.tell() + size)
        return self._file.read(size)

    def seek(self, position: int) -> int:
        self._check(position)
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def _check(position: int) -> None:
        if position > MOST_TOTAL:
            raise tarfile.ReadError(f"it has more than {MOST_TOTAL} bytes")
