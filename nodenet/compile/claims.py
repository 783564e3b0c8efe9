"""Who claims an address, and who owns it.

The API server assigns ClusterIPs and node ports to one Service. But externalIPs and hostPorts are free text, so two
owners may claim the same address and port.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from nodenet.abi import AddressPort
from nodenet.compile.services import Frontend, Owner, PodOwner
from nodenet.compile.state import ServiceWarning


@dataclass(slots=True)
class Claims:
    """The frontends that each Service or pod claims, and who claims each address, sorted by the kind of the claim and
    by name: the first one owns it."""

    _claims: dict[Owner, Mapping[AddressPort, Frontend]] = field(default_factory=dict)
    _claimants: dict[AddressPort, tuple[Owner, ...]] = field(default_factory=dict)
    _contested: set[AddressPort] = field(default_factory=set)

    def of(self, owner: Owner) -> Mapping[AddressPort, Frontend]:
        """All claims of an owner, also those that it lost."""
        return self._claims.get(owner, {})

    def replace(self, ref: Owner, new: Mapping[AddressPort, Frontend]) -> Iterator[AddressPort]:
        """Replace the claims of one owner. Yields the addresses whose frontend may have changed."""
        old = self._claims.pop(ref, {})
        if new:
            self._claims[ref] = new
        for address in old:
            if address not in new:
                self._unclaim(address, ref)
                yield address
        only_this = (ref,)
        for address, frontend in new.items():
            # Hashing an address is the expensive part: never look up a key twice, or in an empty dict.
            known = old.get(address) if old else None
            if known is None:
                others = self._claimants.setdefault(address, only_this)
                if others is not only_this:
                    self._claimants[address] = self._ordered(address, (*others, ref))
                    self._contested.add(address)
                yield address
            elif known != frontend:
                if known.kind is not frontend.kind:
                    self._claimants[address] = self._ordered(address, self._claimants[address])
                yield address

    def _ordered(self, address: AddressPort, refs: Iterable[Owner]) -> tuple[Owner, ...]:
        return tuple(sorted(refs, key=lambda ref: (self._claims[ref][address].kind, *ref)))

    def _unclaim(self, address: AddressPort, ref: Owner) -> None:
        others = tuple(one for one in self._claimants.pop(address) if one != ref)
        if others:
            self._claimants[address] = others
        # At most one Service claims the address now.
        if len(others) <= 1:
            self._contested.discard(address)

    def winner(self, address: AddressPort) -> Frontend | None:
        """The frontend that serves the address. The API server assigns ClusterIPs and node ports to one Service, but
        externalIPs are free text: they take none of those away."""
        refs = self._claimants.get(address)
        return self._claims[refs[0]][address] if refs else None

    def lost(self) -> Iterator[ServiceWarning]:
        """One for each lost claim, in the order of names."""
        for ref in sorted({ref for address in self._contested for ref in self._claimants[address][1:]}):
            for address in self._claims[ref]:
                holder = self._claimants[address][0]
                if holder != ref:
                    what = f"{self._claims[ref][address].kind.field}: {address.addr} port {address.port}"
                    whose = holder if isinstance(holder, PodOwner) else f"Service {holder}"
                    message = f"{what} is already served for {whose}"
                    about = (ref.ref, message, ref.kind) if isinstance(ref, PodOwner) else (ref, message)
                    yield ServiceWarning(*about)
