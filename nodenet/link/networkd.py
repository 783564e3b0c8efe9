"""Keeps systemd-networkd away from the interfaces of pods.

A configuration that matches them (`[Match] Type=ether`, `Name=*`) would take them out of the bridge, and ask for
addresses by DHCP. The file is in /run, so that it is gone after a reboot, as the interfaces are. NetworkManager needs
none: its rules for udev leave every interface veth* alone, and it keeps a bridge of others as it is.
"""

from __future__ import annotations

from pathlib import Path

from nodenet.link import dbus

FOLDER = Path("/run/systemd/network")
# Of all folders the first name wins.
FILE = "00-nodenet.network"
RELOAD = dbus.Method(
    "org.freedesktop.network1",
    "/org/freedesktop/network1",
    "org.freedesktop.network1.Manager",
    "Reload",
)
# Names of D-Bus errors for a service that does not run.
_ABSENT = ("org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner")
HINT = "networkctl reload, on the node"


def text(bridge: str) -> str:
    """The file's content. The pattern is that of cni/wire.py for names of the node's ends."""
    names = f"{bridge} veth{'[0-9a-f]' * 11}"
    return f"# Of nodenet: the interfaces of pods, and their bridge.\n[Match]\nName={names}\n\n[Link]\nUnmanaged=yes\n"


def leave_alone(bridge: str, folder: Path = FOLDER) -> bool:
    """Write the file if it differs. Returns whether it did. Raises OSError."""
    path = folder / FILE
    if path.is_file() and path.read_text() == text(bridge):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f".{FILE}.new"
    new.write_text(text(bridge))
    new.chmod(0o644)
    new.replace(path)
    return True


def reload(bus: Path = dbus.SYSTEM_BUS) -> bool:
    """Let a running networkd read the file. Returns False if it does not run. Raises OSError."""
    try:
        dbus.call(RELOAD, bus)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except dbus.CallError as error:
        if error.name in _ABSENT:
            return False
        raise
    return True
