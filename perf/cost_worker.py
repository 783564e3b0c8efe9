"""Measures one tree's programs for perf/cost.py, which starts it with that tree in PYTHONPATH.

    python3 -P cost_worker.py BPFFS_FOLDER

Input: one line per block with the name of a scenario and a number of packets. Output: first the list of scenarios, then
the ns per packet of each block. It uses only functions that every tree since the first release has.
"""

from __future__ import annotations

import json
import os
import statistics
import struct
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from nodenet import abi
from nodenet.bpf import build, loader
from nodenet.bpf.packet_run import run_packet
from nodenet.bpf.pins import Pins
from nodenet.bpf.tables import BpfTable
from nodenet.model import Direction

CACHE = Path("/var/cache/nodenet")
LOOPBACK = 1
SYN, ACK = 0x02, 0x10
POD, REMOTE, LOCAL = 60001, 60002, 60003
ADDRESSES = {4: ("10.201.0.1", "10.202.0.2", "10.201.0.3"), 6: ("fd01::1", "fd02::2", "fd01::3")}
MACS = bytes.fromhex("020000000003020000000001")  # to LOCAL, from POD
OTHER_MACS = bytes.fromhex("020000000001020000000002")
SHOT = 2
Scenario = Callable[[int], float]


def in_force(value: Any) -> Any:
    """The value as the map holds it. Trees before decision 0039 have plain values."""
    return abi.always(value) if hasattr(abi, "always") else value


def rule(number: int) -> Any:
    """The value of nn_policy. Trees before decision 0040 have the number only."""
    return in_force(abi.Rule.allow(number)) if hasattr(abi, "Rule") else abi.U32(number)


class World:
    """POD and LOCAL may connect to, and accept, TCP and UDP port 80 of all peers. Both are isolated in both
    directions."""

    def __init__(self, folder: Path) -> None:
        pins = Pins(folder)
        pins.make()
        config = loader.DatapathConfig(trace_events=False)
        self.programs = loader.load({"endpoint": build.build("endpoint", CACHE)}, config, pins).programs
        names = ("nn_endpoint", "nn_ipcache", "nn_policy")
        self.tables = {name: BpfTable(name, pins.map(name)) for name in names}
        both = abi.EndpointFlag.ISOLATED_INGRESS | abi.EndpointFlag.ISOLATED_EGRESS
        for addresses in ADDRESSES.values():
            for text, identity, mac in zip(addresses, (POD, REMOTE, LOCAL), ("01", "02", "03"), strict=True):
                address = ip_address(text)
                self.tables["nn_ipcache"].update(abi.LpmKey.host(address), in_force(abi.U32(identity)))
                if identity != REMOTE:
                    entry = in_force(
                        abi.EndpointEntry(LOOPBACK, identity, identity & 0xFFFF, both, f"02:00:00:00:00:{mac}")
                    )
                    self.tables["nn_endpoint"].update(abi.AddressKey(address), entry)
        for subject, peer, direction in (
            (POD, REMOTE, Direction.EGRESS),
            (POD, LOCAL, Direction.EGRESS),
            (POD, REMOTE, Direction.INGRESS),
            (LOCAL, POD, Direction.INGRESS),
        ):
            for protocol in (6, 17):
                key = abi.PolicyKey(abi.POLICY_BITS_PROTOCOL + 16, subject, peer, direction, protocol, 80)
                self.tables["nn_policy"].update(key, rule(7))

    def scenarios(self) -> dict[str, Scenario]:
        found: dict[str, Scenario] = {}
        for version, (pod, remote, local) in ADDRESSES.items():
            for way, program, macs, src, dst in (
                ("egress", "endpoint_egress", MACS, pod, remote),
                ("ingress", "endpoint_ingress", OTHER_MACS, remote, pod),
                ("same node", "endpoint_egress", MACS, pod, local),
            ):
                place = f"IPv{version} {way}"
                found[f"{place}, established TCP"] = self.established(program, macs, src, dst)
                found[f"{place}, SYN"] = self.repeated(program, frame(macs, src, dst, 6, tcp(40001, SYN)))
                found[f"{place}, first datagram"] = self.first(program, macs, src, dst)
        return found

    def run(self, program: str, packet: bytes, repeat: int) -> float:
        run = run_packet(self.programs[program], packet, repeat)
        if run.verdict == SHOT:
            raise RuntimeError(f"{program} dropped {packet.hex()}")
        return run.duration

    def repeated(self, program: str, packet: bytes) -> Scenario:
        # Each SYN counts as a first packet: it causes a policy check and writes an entry.
        return lambda count: self.run(program, packet, count)

    def established(self, program: str, macs: bytes, src: str, dst: str) -> Scenario:
        self.run(program, frame(macs, src, dst, 6, tcp(40000, SYN)), 1)
        packet = frame(macs, src, dst, 6, tcp(40000, ACK))
        return lambda count: self.run(program, packet, count)

    def first(self, program: str, macs: bytes, src: str, dst: str) -> Scenario:
        ports = iter(range(1 << 40))

        def block(count: int) -> float:
            """Each datagram has another source port, so each needs a run of its own. Returns their median."""
            packets = [frame(macs, src, dst, 17, udp(1024 + next(ports) % 64000)) for _ in range(max(count // 50, 1))]
            return statistics.median(self.run(program, packet, 1) for packet in packets)

        return block


def frame(macs: bytes, source: str, target: str, protocol: int, payload: bytes) -> bytes:
    saddr, daddr = ip_address(source), ip_address(target)
    if saddr.version == 6:
        head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
        return macs + b"\x86\xdd" + head + saddr.packed + daddr.packed + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
    return macs + b"\x08\x00" + head + saddr.packed + daddr.packed + payload


def tcp(sport: int, flags: int) -> bytes:
    return struct.pack("!HHIIBBHHH", sport, 80, 1, 0, 5 << 4, flags, 64240, 0, 0)


def udp(sport: int) -> bytes:
    return struct.pack("!HHHH", sport, 80, 8, 0)


def main() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    scenarios = World(Path(sys.argv[1])).scenarios()
    print(json.dumps(list(scenarios)), flush=True)
    for line in sys.stdin:
        name, count = json.loads(line)
        print(scenarios[name](count), flush=True)


if __name__ == "__main__":
    main()
