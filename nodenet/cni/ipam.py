"""host-local IPAM: leases as files, in the format of the reference plugin, so that a node can be moved in both
directions.

    <dataDir>/<network>/<ip>                 containerID CR LF ifname
    <dataDir>/<network>/last_reserved_ip.<n> the last address assigned from set number n
    <dataDir>/<network>/lock                 held with flock during changes

A lease is written to a file without a name (O_TMPFILE) and then linked to its name: it exists completely or not at all,
and a crash leaves nothing behind. File systems without O_TMPFILE use the name `.lease`. It is used only under the lock,
so a crash leaves at most this file, and the next ADD replaces it.

Usually no operation reads all leases: ADD starts after the last assigned address and lets the kernel tell whether the
next one is free, DEL knows its addresses, and index.py finds leases by owner. We add one small file, which the
reference plugin ignores: `.boot` (see reboot.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from pathlib import Path

from nodenet.cni.errors import CniError, Code, with_filename
from nodenet.cni.index import Index
from nodenet.cni.owner import Owner
from nodenet.cni.ranges import Range, RangeSet
from nodenet.cni.signals import pause
from nodenet.endpoint import IPAddress
from nodenet.link import smallfile

__all__ = ["Lease", "Owner", "Store", "allocate", "release"]

_TEMPORARY = ".lease"
# Errors of open(2) if the file system or the kernel does not support O_TMPFILE.
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
# After this many taken candidates, list the folder once instead of trying each file.
_PROBES = 64
# Seconds that a verb waits for the folder's lock before it replies "try again".
LOCK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Lease:
    """An address with the prefix of its subnet, its gateway, and the set from which it came. Only leases of another
    IPAM plugin may have no gateway."""

    address: IPv4Interface | IPv6Interface
    gateway: IPAddress | None
    set_number: int


class Store:
    """The leases of one network. All methods may raise OSError.

    `index_dir` is the folder for the index by owner; a reboot empties it (the agent's run_dir). None: no index, so all
    leases are read.
    """

    def __init__(self, data_dir: Path, network: str, index_dir: Path | None = None) -> None:
        self.network = network
        self.folder = data_dir / network
        self.index = Index(index_dir, self.folder, self.leases) if index_dir else None
        # The open unnamed file to which the owner's leases will be linked; -1: none.
        self._prepared = -1

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder if it does not exist, and hold its lock. Raises CniError with code 11 if another process
        holds it too long."""
        fd = self._open_lock()
        try:
            self._wait(fd, time.monotonic() + LOCK_SECONDS)
            if self.index:
                self.index.begin()
            yield
            if self.index:
                self.index.end()
        finally:
            os.close(fd)

    def _open_lock(self) -> int:
        path, how = f"{self.folder}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(path, how, 0o600)
        except FileNotFoundError:
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            return os.open(path, how, 0o600)

    def _wait(self, fd: int, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    lock = f"{self.folder}/lock"
                    message = f"network {self.network}: another process has held {lock} for over {LOCK_SECONDS:g} s"
                    raise CniError(Code.TRY_AGAIN, message) from None
                pause(0.001)
            else:
                return

    def leases(self) -> dict[IPAddress, Owner]:
        """All leases. A damaged lease has an empty owner; its address stays taken."""
        found = {}
        for address in self.taken():
            with suppress(FileNotFoundError):
                found[address] = self.owner(address)
        return found

    def names(self) -> set[str]:
        """The names of the folder's files. A leased address is one of them, as text."""
        try:
            return set(os.listdir(self.folder))  # noqa: PTH208 - ten thousand Path objects cost more than the listing
        except FileNotFoundError:
            return set()

    def taken(self) -> set[IPAddress]:
        """All leased addresses, from the file names only."""
        return {address for name in self.names() if (address := _parse(name))}

    def is_full(self, entry: RangeSet, elsewhere: Set[str] = frozenset()) -> bool:
        """True if no address of a set is free. `elsewhere`: names of leases of other networks, which count too."""
        names = self.names() | elsewhere
        # A cheap test first: with fewer files than addresses, one must be free. Otherwise check each address.
        return len(names) >= entry.usable and not any(str(address) not in names for address, _ in entry.after(None))

    def owner(self, address: IPAddress) -> Owner:
        """The owner of an address. Reference plugins before 0.8 wrote only the container id: ifname is "" then. Both
        are "" if the path is a folder."""
        try:
            fd = os.open(f"{self.folder}/{address}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                content = os.read(fd, 4096)
            finally:
                os.close(fd)
        except IsADirectoryError:
            return Owner("", "")
        container_id, _, ifname = content.decode(errors="replace").strip().partition("\r\n")
        return Owner(container_id, ifname)

    def held_by(self, owner: Owner) -> list[IPAddress]:
        """The addresses of one owner, from the index if there is one. With an index the lock must be held."""
        legacy = Owner(owner.container_id, "")
        for name in (owner, legacy):
            if self.index:
                candidates = self.index.held(name)
                found = [a for a in candidates if self._holder(a) == name]
            else:
                found = [a for a, other in self.leases().items() if other == name]
            if found:
                return sorted(found, key=lambda a: (a.version, a))
        return []

    def _holder(self, address: IPAddress) -> Owner | None:
        try:
            return self.owner(address)
        except FileNotFoundError:
            return None

    def reserve(self, address: IPAddress, owner: Owner) -> bool:
        """Lease an address; False if it is leased already. The lock must be held, and `prepare` called for the
        owner."""
        source = f"/proc/self/fd/{self._prepared}" if self._prepared >= 0 else f"{self.folder}/{_TEMPORARY}"
        try:
            # Python follows the link in /proc only if a directory descriptor is given; the absolute path does not use
            # it.
            os.link(source, f"{self.folder}/{address}", src_dir_fd=max(self._prepared, 0))
        except FileExistsError:
            return False
        if self.index:
            self.index.add(owner, address)
        return True

    def prepare(self, owner: Owner) -> None:
        """Write the content of the owner's leases. The caller must call `clear` afterwards."""
        try:
            self._prepared = os.open(self.folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            # Always a new file: the existing one may be linked to a lease.
            (self.folder / _TEMPORARY).unlink(missing_ok=True)
            smallfile.write(f"{self.folder}/{_TEMPORARY}", owner.text, os.O_EXCL)
            return
        with with_filename(self.folder):
            content = owner.text.encode()
            if os.write(self._prepared, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def release(self, address: IPAddress, owner: Owner) -> bool:
        """Release an address; False if it is not (or no longer) leased to this owner."""
        with suppress(FileNotFoundError):
            if self.owner(address) in (owner, Owner(owner.container_id, "")):
                (self.folder / str(address)).unlink()
                if self.index:
                    self.index.discard(owner, address)
                return True
        return False

    def last(self, set_number: int) -> IPAddress | None:
        """The last address assigned from a set. A damaged file is ignored: the search then starts at the first
        address."""
        try:
            return _parse(smallfile.read(f"{self.folder}/last_reserved_ip.{set_number}").strip())
        except FileNotFoundError:
            return None

    def store_last(self, set_number: int, address: IPAddress) -> None:
        """Store the last assigned address. Written in place, as the reference plugin does: the file is only a hint,
        and it is ignored if it is damaged."""
        smallfile.write(f"{self.folder}/last_reserved_ip.{set_number}", str(address))

    def clear(self) -> None:
        """Remove the file of `prepare`. The lock must be held."""
        if self._prepared >= 0:
            os.close(self._prepared)
            self._prepared = -1
        else:
            (self.folder / _TEMPORARY).unlink(missing_ok=True)


def allocate(
    store: Store,
    owner: Owner,
    sets: Sequence[RangeSet],
    requested: Sequence[IPAddress] = (),
    search: bool = True,
    elsewhere: Callable[[IPAddress], bool] = lambda address: False,
) -> list[Lease]:
    """Lease one address from each set: the owner's existing lease, else the requested address, else the next free one
    that is not taken `elsewhere` (podpool.py).

    `search` False: do not search for existing leases of the owner, which may read all leases. Use it only for an owner
    that certainly has none. After an error, all leases that were created here are released again. Raises CniError.
    """
    unused = [address for address in requested if not any(entry.find(address) for entry in sets)]
    if unused:
        ranges = "; ".join(str(entry) for entry in sets)
        raise CniError(Code.BAD_CONFIG, f"network {store.network}: requested address {unused[0]} is not in {ranges}")
    new: list[Lease] = []
    with store.locked():
        held = store.held_by(owner) if search else []
        leases = []
        try:
            store.prepare(owner)
            for number, entry in enumerate(sets):
                if (mine := next((a for a in held if entry.find(a)), None)) is not None:
                    leases.append(_lease(mine, entry, number))
                    continue
                new.append(_take(store, owner, number, entry, requested, elsewhere))
                leases.append(new[-1])
        except BaseException:
            for lease in new:
                with suppress(OSError):
                    store.release(lease.address.ip, owner)
            raise
        finally:
            with suppress(OSError):
                store.clear()
    return leases


def release(store: Store, owner: Owner, known: Sequence[IPAddress] | None) -> list[IPAddress]:
    """Release an owner's addresses and return them. `known` None: those in the index. Idempotent."""
    if not store.folder.is_dir():
        return []
    with store.locked():
        held = store.held_by(owner) if known is None else known
        return [address for address in held if store.release(address, owner)]


def _take(
    store: Store,
    owner: Owner,
    number: int,
    entry: RangeSet,
    requested: Sequence[IPAddress],
    elsewhere: Callable[[IPAddress], bool],
) -> Lease:
    wanted = [address for address in requested if entry.find(address)]
    if len(wanted) > 1:
        raise CniError(Code.BAD_CONFIG, f"network {store.network}: more than one address requested from {entry}")
    if wanted and elsewhere(wanted[0]):
        message = f"network {store.network}: requested address {wanted[0]} is leased in another network of this node"
        raise CniError(Code.ADDRESS_TAKEN, message)
    if wanted:
        address = _take_requested(store, owner, wanted[0], entry)
    else:
        address = _take_next(store, owner, number, entry, elsewhere)
    store.store_last(number, address)
    return _lease(address, entry, number)


def _take_requested(store: Store, owner: Owner, address: IPAddress, entry: RangeSet) -> IPAddress:
    if any(address == found.gateway for found in entry.ranges):
        raise CniError(Code.BAD_CONFIG, f"network {store.network}: requested address {address} is the gateway")
    if not store.reserve(address, owner):
        holder = store.owner(address)
        message = f"network {store.network}: requested address {address} is leased to container {holder.container_id}"
        raise CniError(Code.ADDRESS_TAKEN, message)
    return address


def _take_next(
    store: Store, owner: Owner, number: int, entry: RangeSet, elsewhere: Callable[[IPAddress], bool]
) -> IPAddress:
    taken: set[str] = set()
    for tries, (address, _) in enumerate(entry.after(store.last(number))):
        if tries == _PROBES:
            taken = store.names()
        if str(address) not in taken and not elsewhere(address) and store.reserve(address, owner):
            return address
    raise CniError(
        Code.POOL_EXHAUSTED,
        f"network {store.network}: no free address in {entry}: all {entry.usable} are leased",
        f"leases are files in {store.folder}",
    )


def _lease(address: IPAddress, entry: RangeSet, number: int) -> Lease:
    found: Range | None = entry.find(address)
    assert found is not None
    return Lease(ip_interface(f"{address}/{found.subnet.prefixlen}"), found.gateway, number)


def _parse(text: str) -> IPAddress | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
