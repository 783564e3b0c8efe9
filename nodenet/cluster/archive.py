"""A report as one tar file. Everything that is added is redacted."""

from __future__ import annotations

import io
import json
import tarfile
import time
from pathlib import PurePosixPath
from types import TracebackType
from typing import IO, Any, Self

from nodenet.cluster import redact

# Bytes of one member that are kept, and members of a node's part.
MOST_BYTES = 32 << 20
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
        """Add the members of another report, which a node wrote, below `folder`. Raises tarfile.TarError."""
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            for number, member in enumerate(tar):
                path = PurePosixPath(member.name)
                # The node's report is input as any other: it may not name a place outside of its folder.
                if path.is_absolute() or ".." in path.parts or not member.isreg() or number >= MOST_MEMBERS:
                    self.error(f"{folder}: {member.name}: left out")
                    continue
                content = tar.extractfile(member)
                assert content is not None
                text = content.read(MOST_BYTES).decode(errors="replace")
                self.text(f"{folder}/{'/'.join(path.parts[1:]) or path.name}", text)

    def _put(self, name: str, text: str) -> None:
        data = text.encode(errors="replace")[:MOST_BYTES]
        info = tarfile.TarInfo(f"{self._top}/{name}")
        info.size, info.mtime, info.mode = len(data), int(time.time()), 0o600
        self._tar.addfile(info, io.BytesIO(data))
