"""Take an attachment away, whole or what a crash left of it: what DEL, GC and an agent's start all do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nodenet.cni import ipam, wire
from nodenet.cni.errors import CniError, Code
from nodenet.cni.ipam import Owner, Store
from nodenet.cni.reboot import reclaim
from nodenet.cni.records import Crashed, Record, Records
from nodenet.endpoint import Endpoint, IPAddress
from nodenet.link import netns
from nodenet.link.handle import Link, LinkError

if TYPE_CHECKING:
    from nodenet.cni.delegate import Delegate

log = logging.getLogger("nodenet.cni")
Step = Callable[[str], None]
# The steps of a detachment, by name: tests kill it before each.
STEPS = ("cut", "forget", "filters", "release", "drop")


@dataclass(frozen=True, slots=True)
class Detacher:
    """What every detachment on this node needs. `forget` is the agent's hook, called when the wires are cut and before
    the addresses are given back; what it raises leaves them with their owner."""

    node: Link
    records: Records
    run_dir: Path
    forget: Callable[[Endpoint], None]
    step: Step = lambda name: None

    def detach(
        self,
        owner: Owner,
        network: str,
        data_dir: Path | None,
        netns_path: str = "",
        hints: Iterable[IPAddress] = (),
        crashed: bool = False,
        masqueraded: bool = False,
        delegate: Delegate | None = None,
    ) -> None:
        """Remove veth, rules, agent state, leases and record, in this order. Idempotent; the attachment must be held
        (Records.busy). `hints` are addresses that it may have beside those that are known; `masqueraded` is the
        configuration's ipMasq: the reference may have wired it. `delegate` gave the addresses; without one that of the
        record is asked. Raises CniError, OSError, LinkError."""
        record, damaged = self._record(owner)
        if record:
            network, data_dir = record.network, record.data_dir
        self.step("cut")
        cut = wire.disconnect(self.node, owner, record.endpoint.host_ifname if record else "")
        if netns_path and not cut:
            wire.disconnect_in(netns_path, owner.ifname)
        self.step("forget")
        if record:
            self.forget(record.endpoint)
        store = Store(data_dir, network, self.run_dir) if data_dir else None
        known = list(record.endpoint.ips) if record else self._held(store, owner, hints)
        self.step("filters")
        wire.unfilter_port(network, owner, known)
        if masqueraded and known and not record:
            forget_reference(network, owner, known)
        self.step("release")
        if store:
            ipam.release(store, owner, known)
        if delegate or (record and record.delegation):
            _give_back(delegate, record)
        self.step("drop")
        traces = crashed or damaged or cut or bool(known)
        self.records.drop(owner, record.endpoint.endpoint_id if record else 0, search=traces)

    def _held(self, store: Store | None, owner: Owner, hints: Iterable[IPAddress]) -> list[IPAddress]:
        """Addresses whose lease names the owner, and those of the hints."""
        if store is None or not store.folder.is_dir():
            return list(hints)
        with store.locked():
            return list(dict.fromkeys([*store.held_by(owner), *hints]))

    def _record(self, owner: Owner) -> tuple[Record | None, bool]:
        """The record, and whether there is one that cannot be read: then what is left is looked for by name."""
        try:
            return self.records.get(owner), False
        except ValueError as error:
            log.warning("endpoint file of container %s: %s", owner.container_id, error)
            return None, True


def _give_back(delegate: Delegate | None, record: Record | None) -> None:
    """DEL of the IPAM plugin that gave the addresses. Raises CniError: the attachment stays known then, and DEL can be
    tried again."""
    from nodenet.cni.delegate import Delegate

    if delegate is None and record is not None:
        try:
            delegate = Delegate.from_json(record.delegation)
        except ValueError as error:
            log.warning("endpoint file of container %s: delegation: %s", record.endpoint.container_id, error)
    if delegate is not None:
        delegate.delete()


def forget_reference(network: str, owner: Owner, known: Iterable[IPAddress]) -> None:
    # Imported here: nobody needs it but nodes that have just moved over.
    from nodenet.cni.reference import forget_masquerade

    forget_masquerade(network, owner.container_id, known)


def recover(run_dir: Path, forget: Callable[[Endpoint], None] = lambda endpoint: None) -> list[str]:
    """At an agent's start, in the node's namespace: end what verbs that were killed began, and free what belongs to
    attachments whose both ends are gone, namespace and veth. A sentence for each one that is left for later.

    An attachment with either end alive is its runtime's: nothing of it is touched.
    """
    records = Records(run_dir)
    problems: list[str] = []
    with ExitStack() as stack:
        node = stack.enter_context(Link())
        detacher = Detacher(node, records, run_dir, forget)
        dead = [*records.crashed(), *dead_attachments(node, records)]
        for entry in dead:
            try:
                # Short: who holds it is at work on it.
                with records.busy(entry.owner, 0.0) as crashed:
                    detacher.detach(entry.owner, entry.network, entry.data_dir, entry.netns, crashed=crashed)
                log.warning("network %s: %s of container %s was left over: removed", entry.network, *entry.owner[::-1])
            except CniError as error:
                if error.code != Code.TRY_AGAIN:
                    problems.append(str(error))
            except (OSError, LinkError) as error:
                problems.append(f"container {entry.owner.container_id}: {error}")
        for network, data_dir in {(r.network, r.data_dir) for r in records.all()[0]} | {
            (entry.network, entry.data_dir) for entry in dead
        }:
            try:
                if data_dir:
                    reclaim(Store(data_dir, network, run_dir))
            except (OSError, CniError) as error:
                problems.append(f"network {network}: {error}")
    return problems


def dead_attachments(node: Link, records: Records) -> list[Crashed]:
    """Attachments whose namespace and whose veth are both gone."""
    alive = {interface.name for interface in node.all()}
    found = []
    for record in records.all()[0]:
        endpoint = record.endpoint
        if endpoint.host_ifname not in alive and not netns.is_namespace(endpoint.netns):
            found.append(Crashed(record.owner, record.network, record.data_dir, ""))
    return found
