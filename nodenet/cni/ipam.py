"""host-local: leases as files, in the reference plugin's own format, so that a node moves over in either direction.

    <dataDir>/<network>/<ip>                 containerID CR LF ifname
    <dataDir>/<network>/last_reserved_ip.<n> the address that set number n gave last
    <dataDir>/<network>/lock                 held with flock by whoever changes anything

A lease is written as a file without a name (O_TMPFILE) and linked into its place: it is there whole or not at all, and
a crash leaves nothing. Where the file system has no such files it is written under the name `.lease`: that is only
touched under the lock, so a crash leaves at most that one, and the next ADD overwrites it.

Nothing here reads every lease in the ordinary course of things: ADD goes on from the address given last and lets the
kernel say whether the next one is free, DEL knows its addresses, and who holds what is in index.py. A small file of
ours, which the reference takes no notice of, stands beside the leases: `.boot` (see reboot.py).
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

from nodenet.cni.errors import CniError, Code, naming
from nodenet.cni.index import Index
from nodenet.cni.owner import Owner
from nodenet.cni.patience import pause
from nodenet.cni.ranges import Range, RangeSet
from nodenet.endpoint import IPAddress
from nodenet.link import smallfile

__all__ = ["Lease", "Owner", "Store", "allocate", "release"]

_TEMPORARY = ".lease"
# What open(2) says where a file system, or a kernel, has no files without a name.
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
# After so many taken candidates the folder's names are listed once instead of asking the kernel for each.
_PROBES = 64
# Seconds that a verb waits for the folder's lock before it says "try again".
LOCK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Lease:
    """An address with its subnet's prefix, the set it came from, and its gateway: only another plugin's lacks one."""

    address: IPv4Interface | IPv6Interface
    gateway: IPAddress | None
    set_number: int


class Store:
    """The leases of one network. Every method raises OSError as the file system does.

    `index_dir` is a folder of this boot (the agent's run_dir) for the index by owner; None: every lease is read.
    """

    def __init__(self, data_dir: Path, network: str, index_dir: Path | None = None) -> None:
        self.network = network
        self.folder = data_dir / network
        self.index = Index(index_dir, self.folder, self.leases) if index_dir else None
        # Open: the file without a name that the owner's leases will be links to.
        self._prepared = -1

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder if need be and hold its lock. Raises CniError with code 11 when somebody keeps it."""
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
                    message = f"network {self.network}: somebody holds {self.folder}/lock for over {LOCK_SECONDS:g} s"
                    raise CniError(Code.TRY_AGAIN, message) from None
                pause(0.001)
            else:
                return

    def leases(self) -> dict[IPAddress, Owner]:
        """Every lease. One whose content is damaged has an empty owner: the address stays taken."""
        found = {}
        for address in self.taken():
            with suppress(FileNotFoundError):
                found[address] = self.owner(address)
        return found

    def names(self) -> set[str]:
        """Names of the folder's files: a leased address is one of them, as text."""
        try:
            return set(os.listdir(self.folder))  # noqa: PTH208 - ten thousand Path objects cost more than the listing
        except FileNotFoundError:
            return set()

    def taken(self) -> set[IPAddress]:
        """Every leased address, by the names of the files alone."""
        return {address for name in self.names() if (address := _parse(name))}

    def full(self, entry: RangeSet, elsewhere: Set[str] = frozenset()) -> bool:
        """Whether no address of a set is left; `elsewhere` are leases of other networks that count too."""
        names = self.names() | elsewhere
        # Cheap first: fewer files than addresses. Otherwise those of the set are counted.
        return len(names) >= entry.usable and not any(str(address) not in names for address, _ in entry.after(None))

    def owner(self, address: IPAddress) -> Owner:
        """Who holds an address. Releases before 0.8 of the reference wrote the container alone: ifname is "" then. What
        is no file at all names nobody."""
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
        """Addresses of one owner: from the index, which is made anew when it does not fit the folder. The lock must be
        held where there is an index."""
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
        """Take an address; False when somebody has it. The lock must be held, and `prepare` called for the owner."""
        source = f"/proc/self/fd/{self._prepared}" if self._prepared >= 0 else f"{self.folder}/{_TEMPORARY}"
        try:
            # With a directory's descriptor, which an absolute path does not need, Python follows the link in /proc.
            os.link(source, f"{self.folder}/{address}", src_dir_fd=max(self._prepared, 0))
        except FileExistsError:
            return False
        if self.index:
            self.index.add(owner, address)
        return True

    def prepare(self, owner: Owner) -> None:
        """Write what the owner's leases will say. `clear` must follow."""
        try:
            self._prepared = os.open(self.folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            # Always a new file: the last one may be linked to a lease by now.
            (self.folder / _TEMPORARY).unlink(missing_ok=True)
            smallfile.write(f"{self.folder}/{_TEMPORARY}", owner.text, os.O_EXCL)
            return
        with naming(self.folder):
            content = owner.text.encode()
            if os.write(self._prepared, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def release(self, address: IPAddress, owner: Owner) -> bool:
        """Give an address back; False when it is not this owner's (any more)."""
        with suppress(FileNotFoundError):
            if self.owner(address) in (owner, Owner(owner.container_id, "")):
                (self.folder / str(address)).unlink()
                if self.index:
                    self.index.discard(owner, address)
                return True
        return False

    def last(self, set_number: int) -> IPAddress | None:
        """The address that a set gave last. A damaged file counts as none: the round starts anew."""
        try:
            return _parse(smallfile.read(f"{self.folder}/last_reserved_ip.{set_number}").strip())
        except FileNotFoundError:
            return None

    def remember(self, set_number: int, address: IPAddress) -> None:
        """Where the set's round goes on. In place, as the reference does: it is a hint, and a damaged one is none."""
        smallfile.write(f"{self.folder}/last_reserved_ip.{set_number}", str(address))

    def clear(self) -> None:
        """End what `prepare` began. The lock must be held."""
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
    """One lease from each set: what the owner has already, else the requested address, else the next free one that is
    not taken `elsewhere` (podpool.py).

    `search` False skips looking for leases that the owner may have: only for one that is known to have none, as it
    reads every lease. All or nothing: after an error no lease is left that was not there before. Raises CniError.
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
    """Give back an owner's addresses and return them; `known` None: those that the index names. Idempotent."""
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
        raise CniError(Code.BAD_CONFIG, f"network {store.network}: several addresses requested of {entry}")
    if wanted and elsewhere(wanted[0]):
        message = f"network {store.network}: requested address {wanted[0]} is leased in another network of this node"
        raise CniError(Code.ADDRESS_TAKEN, message)
    if wanted:
        address = _take_requested(store, owner, wanted[0], entry)
    else:
        address = _take_next(store, owner, number, entry, elsewhere)
    store.remember(number, address)
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
