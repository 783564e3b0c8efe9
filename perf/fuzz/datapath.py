"""Runs the programs of one build on single frames of the fuzzer's world, with BPF_PROG_TEST_RUN."""

from __future__ import annotations

import ctypes
import itertools
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path

from nodenet import abi
from nodenet.bpf import libbpf, loader
from nodenet.bpf.packet_run import RunOptions
from nodenet.bpf.pins import Pins
from nodenet.bpf.tables import BpfTable
from nodenet.model import Direction
from perf.fuzz import build
from perf.fuzz.world import (
    ACK,
    ALLOWED,
    B_MAC,
    FOREIGN,
    NEIGHBOUR,
    NEIGHBOUR_MAC,
    OTHER,
    REVERSE,
    SYN,
    TCP,
    TRACKS,
    UDP,
    Frame,
    Track,
)

# BPF_PROG_TEST_RUN runs on the loopback device. Another interface number means that nothing there is local.
_LOOPBACK = 1
_TC_SHOT = 2
_CONTEXT_SIZE, _GSO_SIZE_AT = 192, 176  # struct __sk_buff
_ROOM = 1 << 14
_numbers = itertools.count()
_TABLES = ("nn_endpoint", "nn_ipcache", "nn_metrics", "nn_policy", "nn_state")
_SMALL = {"nn_ct": 1 << 16, "nn_ct_slot": (1 << 16) // 20, "nn_policy": 1024, "nn_ipcache": 1024, "nn_cidr": 1024}
_MICROSECONDS = 1000


class Datapath:
    """Loaded programs, with the world's pods and rules in their maps."""

    def __init__(self, root: Path, objects: Mapping[str, Path], places: Mapping[str, int] | None = None) -> None:
        """`places`: interface indexes of the tracks' local pods, by "NAME a" and "NAME b". None: all are on the
        loopback, and the flows of the world are opened."""
        self._places = places
        self._pins = Pins(root)
        self._pins.make()
        config = loader.DatapathConfig(trace_events=False, sizes=_SMALL)
        self._loaded = loader.load(dict(objects), config, self._pins)
        self.programs = self._loaded.programs
        self.tables = {name: BpfTable(name, self._pins.map(name)) for name in _TABLES}
        self._source = ctypes.create_string_buffer(_ROOM)
        self._target = ctypes.create_string_buffer(_ROOM)
        self._context = ctypes.create_string_buffer(_CONTEXT_SIZE)
        self._options = RunOptions(
            sz=ctypes.sizeof(RunOptions),
            data_in=ctypes.addressof(self._source),
            data_out=ctypes.addressof(self._target),
            repeat=1,
        )
        for track in TRACKS:
            self._add(track)
        for version in (4, 6):
            self._identity(OTHER[version], 3000)
            self._identity(NEIGHBOUR[version], 3001)
            entry = abi.always(abi.EndpointEntry(_LOOPBACK, 3001, 41, 0, NEIGHBOUR_MAC.hex(":")))
            self.tables["nn_endpoint"].update(abi.AddressKey(ip_address(NEIGHBOUR[version])), entry)
        if places is None:
            self.prime()

    def close(self) -> None:
        for table in self.tables.values():
            table.close()
        loader.close(self._loaded)
        self._pins.remove()

    def _add(self, track: Track) -> None:
        subject = 1000 + track.number
        for version in (4, 6):
            for end, address, number, mac, is_local, flag in (
                ("a", track.a[version], track.number, track.a_mac, track.a_is_local, self._flag(track, "egress")),
                (
                    "b",
                    track.b[version],
                    track.number + 1,
                    B_MAC,
                    track.b_is_local,
                    self._flag(track, "ingress", "local"),
                ),
            ):
                self._identity(address, 1000 + number)
                place = _LOOPBACK if self._places is None else self._places.get(f"{track.name} {end}", 0)
                if is_local and place:
                    entry = abi.always(abi.EndpointEntry(place, 1000 + number, number, flag, mac.hex(":")))
                    self.tables["nn_endpoint"].update(abi.AddressKey(ip_address(address)), entry)
        direction = Direction.EGRESS if track.name == "egress" else Direction.INGRESS
        subject, peer = (subject, subject + 1) if track.name == "egress" else (subject + 1, subject)
        for protocol, port in ALLOWED:
            key = abi.PolicyKey(abi.POLICY_BITS_PROTOCOL + 16, subject, peer, direction, protocol, port)
            self.tables["nn_policy"].update(key, abi.always(abi.Rule.allow(7)))

    @staticmethod
    def _flag(track: Track, *names: str) -> int:
        if track.name not in names:
            return 0
        egress = track.name == "egress"
        return abi.EndpointFlag.ISOLATED_EGRESS if egress else abi.EndpointFlag.ISOLATED_INGRESS

    def _identity(self, address: bytes, identity: int) -> None:
        self.tables["nn_ipcache"].update(abi.LpmKey.host(ip_address(address)), abi.always(abi.U32(identity)))

    def run(self, program: str, frame: Frame) -> bytes | None:
        """The frame after the program, or None if it was dropped or is not a valid frame for the kernel."""
        options, size = self._options, len(frame.data)
        ctypes.memmove(self._source, frame.data, size)
        options.data_size_in, options.data_size_out = size, _ROOM
        options.ctx_in, options.ctx_size_in = None, 0
        if frame.gso_size:
            struct.pack_into("=I", self._context, _GSO_SIZE_AT, frame.gso_size)
            options.ctx_in, options.ctx_size_in = ctypes.addressof(self._context), _CONTEXT_SIZE
        if libbpf.lib().bpf_prog_test_run_opts(self.programs[program], ctypes.byref(options)) < 0:
            return None
        if options.retval == _TC_SHOT:
            return None
        return ctypes.string_at(self._target, options.data_size_out)

    def revision(self, number: int) -> None:
        """Set the policy revision, as after a change of rules, so that flows are checked again."""
        self.tables["nn_state"].update(abi.U32(0), abi.State(number, number))

    def prime(self) -> None:
        """Open B's flows with A and with another peer, after A has announced itself on the link (ARP). Raises
        RuntimeError if the programs drop a packet."""
        speaker = TRACKS[0]
        if self.run(speaker.program, Frame(build.arp(speaker.a_mac, speaker.a[4], speaker.b[4]))) is None:
            raise RuntimeError(f"track {speaker.name}: A's ARP did not pass")
        for track in TRACKS:
            for version in (4, 6):
                for protocol in (TCP, UDP):
                    self._open(track, version, protocol, track.a[version], *REVERSE[protocol])
                    if track.b_is_local:
                        self._open(track, version, protocol, OTHER[version], *FOREIGN[protocol])

    def _open(self, track: Track, version: int, protocol: int, peer: bytes, port: int, own: int) -> None:
        local_peer = track.a_is_local and peer == track.a[version]
        # Packets of a local pod run its egress program. Packets from elsewhere run the ingress program of the receiver.
        out = "endpoint_egress" if track.b_is_local else "endpoint_ingress"
        back = "endpoint_egress" if local_peer else "endpoint_ingress"
        steps = ((SYN, False), (SYN | ACK, True), (ACK, False)) if protocol == TCP else ((0, False), (0, True))
        for flags, is_back in steps:
            src, dst = (peer, track.b[version]) if is_back else (track.b[version], peer)
            ports = (port, own) if is_back else (own, port)
            segment = build.tcp(*ports, flags) if protocol == TCP else build.udp(*ports)
            mac = track.a_mac if is_back else B_MAC
            data = plain(version, mac, src, dst, protocol, build.finished(src, dst, protocol, segment))
            if self.run(back if is_back else out, Frame(data)) is None:
                raise RuntimeError(
                    f"track {track.name}: IPv{version} protocol {protocol} flags {flags:#x} did not pass"
                )

    def drops(self) -> dict[str, int]:
        """Dropped packets by reason, since the load."""
        found: dict[str, int] = {}
        for key, cpus in self.tables["nn_metrics"].items():
            if key.direction and key.reason and key.reason != abi.LOST_EVENTS:
                name = abi.DropReason(key.reason).name
                found[name] = found.get(name, 0) + sum(value.packets for value in cpus)
        return found


def plain(version: int, mac: bytes, src: bytes, dst: bytes, protocol: int, segment: bytes) -> bytes:
    """A normal frame."""
    if version == 4:
        return build.ether(B_MAC, mac, build.IPV4_TYPE, build.ipv4(src, dst, protocol, segment))
    return build.ether(B_MAC, mac, build.IPV6_TYPE, build.ipv6(src, dst, protocol, segment))


class Loads:
    """Loads the same objects repeatedly, each time with empty maps."""

    def __init__(self, folder: Path, objects: Mapping[str, Path]) -> None:
        self._folder = folder
        self._objects = objects

    @contextmanager
    def fresh(self) -> Iterator[Datapath]:
        with ExitStack() as stack:
            datapath = Datapath(self._folder / f"fuzz{next(_numbers)}", self._objects)
            stack.callback(datapath.close)
            yield datapath
