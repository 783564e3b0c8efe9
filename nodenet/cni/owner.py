"""The name of an attachment in the specification: (container id, interface name)."""

from __future__ import annotations

from typing import NamedTuple


class Owner(NamedTuple):
    """The owner of a lease, a record and an interface."""

    container_id: str
    ifname: str

    @property
    def text(self) -> str:
        """The content of a lease file; like the reference plugin, without a newline at the end."""
        return f"{self.container_id}\r\n{self.ifname}"

    @property
    def stem(self) -> str:
        """Used in file names."""
        return f"{self.container_id}-{self.ifname}"
