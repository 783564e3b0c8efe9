"""What names an attachment: the specification's (container id, interface name)."""

from __future__ import annotations

from typing import NamedTuple


class Owner(NamedTuple):
    """Whose lease, record and interface it is."""

    container_id: str
    ifname: str

    @property
    def text(self) -> str:
        """A lease's content; the reference writes no newline at the end."""
        return f"{self.container_id}\r\n{self.ifname}"

    @property
    def stem(self) -> str:
        """For names of files."""
        return f"{self.container_id}-{self.ifname}"
