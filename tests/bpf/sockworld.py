"""UDP Services in front of real sockets: the maps as the agent writes them, and a process that asks."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from nodenet import abi
from tests.sockclient import SocketProcess

if TYPE_CHECKING:
    from .conftest import Datapath

LOCAL = {4: "127.0.0.1", 6: "::1"}
ONE, TWO = 1, 2
SERVICES = {4: {ONE: "10.96.0.10", TWO: "10.96.0.11"}, 6: {ONE: "fd00:96::10", TWO: "fd00:96::11"}}
PORT, UDP = 53, 17


class World:
    """Servers on ports of the loopback, Services in front of them, and a process that asks."""

    def __init__(self, datapath: Datapath, process: SocketProcess, version: int, mapped: bool = False) -> None:
        self.tables = datapath.tables
        self.peers = datapath.peers
        self.process = process
        self.version = version
        # Clients are AF_INET6 sockets that name IPv4-mapped addresses.
        self.mapped = mapped
        self.local = LOCAL[version]
        self._slots: dict[int, tuple[int, ...]] = {}

    def address(self, service: int) -> str:
        """As a client names the Service."""
        return ("::ffff:" if self.mapped else "") + SERVICES[self.version][service]

    def backend(self) -> str:
        """As a client names the servers' own address."""
        return ("::ffff:" if self.mapped else "") + self.local

    def client(self, name: str) -> None:
        self.process.do("udp", name, None, 0, 6 if self.mapped else self.version)

    def server(self, port: int) -> None:
        self.process.do("udp", f"server{port}", self.local, port)

    def serve(self, service: int, *ports: int, draining: tuple[int, ...] = (), protocol: int = UDP) -> None:
        """The Service's backends from now on, written in the agent's order. A backend's number is its port, and none is
        ever removed: another Service may have it."""
        address, tables = ip_address(SERVICES[self.version][service]), self.tables
        for port in (*ports, *draining):
            backend = abi.AddressPort(ip_address(self.local), port, protocol)
            tables["nn_backend"].update(abi.U32(port), backend)
            if protocol == UDP:
                tables["nn_member"].update(abi.MemberKey(service, port), backend)
        tables["nn_revnat"].update(abi.U32(service), abi.AddressPort(address, PORT, protocol))
        for slot, port in enumerate(ports, 1):
            entry = abi.FrontendEntry(port, service, 0)
            tables["nn_frontend"].update(abi.FrontendKey(address, PORT, protocol, slot), entry)
        tables["nn_frontend"].update(
            abi.FrontendKey(address, PORT, protocol, 0), abi.FrontendEntry(0, service, len(ports))
        )
        for port in set(self._slots.get(service, ())) - {*ports, *draining}:
            tables["nn_member"].delete(abi.MemberKey(service, port))
        self._slots[service] = (*ports, *draining)

    def ask(self, name: str, service: int) -> None:
        self.process.do("sendto", name, "ask", self.address(service), PORT)

    def remove(self, service: int) -> None:
        """The Service is deleted."""
        self.serve(service)
        address = ip_address(SERVICES[self.version][service])
        self.tables["nn_frontend"].delete(abi.FrontendKey(address, PORT, UDP, 0))
        self.tables["nn_revnat"].delete(abi.U32(service))
