"""Measures the cost of a flow in the tree whose modules it imports. perf.flows runs it. See perf.trees.Worker."""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from ipaddress import ip_address

from nodenet.abi import Event
from nodenet.flow.filter import FlowFilter, Origin
from nodenet.flow.matcher import compile_filters
from nodenet.flow.pipeline import Pipeline
from nodenet.flow.ring import Ring
from nodenet.flow.types import Flow, NameTable, Party, PolicyMatch, PolicyName, ServiceName, Workload
from nodenet.rpc import convert

# Number of pods on the node, and of records. The records have no more addresses than the agent caches, as on a real
# node.
PODS, RECORDS = 200, 8192
SERVICE = ip_address("10.96.0.10")
ORIGIN = Origin("node-1", "default", (), "0123456789abcdef0123")
FILTER = FlowFilter(source_pod=("shop/web",), verdict=(2,), destination_port=("80", "443"))


def _party(number: int) -> Party:
    labels = (f"k8s:app=web-{number}", "k8s:io.kubernetes.pod.namespace=shop")
    address = ip_address(0x0AF40000 + number)
    return Party(1000 + number, "shop", f"web-{number}", labels, (Workload("Deployment", "web"),), number, (address,))


def _names() -> NameTable:
    parties = [_party(number) for number in range(1, PODS + 1)]
    return NameTable(
        addresses={party.ips[0]: party for party in parties},
        endpoints={party.endpoint_id: party for party in parties},
        netns_cookies={5000 + party.endpoint_id: party for party in parties},
        services={2_000_000_000: ServiceName("shop", "web")},
        frontends={(SERVICE, 80, 6): ServiceName("shop", "web")},
        rules={3_000_000_000: PolicyName("shop", "let-web", "ingress[0]", PolicyMatch.L3_L4)},
        isolated_by={(party.identity, 1): (PolicyName("shop", "let-web"),) for party in parties},
    )


def _records() -> list[bytes]:
    """Typical records of a node: first packets, their answers, socket calls to a Service, drops. Each is another
    flow."""
    chance = random.Random(7)
    return [_record(chance, number) for number in range(RECORDS)]


def _record(chance: random.Random, number: int) -> bytes:
    one, other = chance.sample(range(1, PODS + 1), 2)
    event = Event(
        type=5, point=0, size=160, reason=0, time=10**15 + number * 1000, cookie=chance.getrandbits(40),
        saddr=ip_address(0x0AF40000 + one), daddr=ip_address(0x0AF40000 + other), sport=chance.randrange(1024, 65536),
        dport=80, protocol=6, direction=1, ct_status=0, tcp_flags=2, icmp_type=0, icmp_code=0, endpoint_id=other,
        src_identity=1000 + one, dst_identity=1000 + other, rule_id=3_000_000_000, service_id=0, ifindex=300 + other,
        length=chance.randrange(60, 1500), src_mac=f"02:00:00:00:00:{one:02x}", dst_mac=f"02:00:00:00:00:{other:02x}",
        ip_version=4, is_reply=0,
    )  # fmt: skip
    kind = number % 8
    if kind in (3, 4):
        event = event._replace(
            type=4, tcp_flags=18, is_reply=1, ct_status=2, direction=2, rule_id=0, service_id=2 * 10**9
        )
    elif kind == 5:
        event = event._replace(
            type=7, saddr=ip_address("::"), daddr=SERVICE, sport=0, cookie=5000 + one, ifindex=0, endpoint_id=0,
            src_identity=0, dst_identity=0, rule_id=0, service_id=2 * 10**9, direction=2, tcp_flags=0, length=0,
            src_mac="00:00:00:00:00:00", dst_mac="00:00:00:00:00:00",
        )  # fmt: skip
    elif kind == 6:
        event = event._replace(type=1, reason=-133, rule_id=0)
    elif kind == 7:
        event = event._replace(type=4, protocol=17, dport=53, tcp_flags=0, point=0)
    return event.pack()


class Work:
    """The scenarios. Each returns nanoseconds of CPU per flow, except `memory`: bytes per stored flow."""

    def __init__(self) -> None:
        self._records = _records()
        self._names = _names()
        self._matches = compile_filters([FILTER], [], ORIGIN)
        self.scenarios: dict[str, Callable[[int], float]] = {
            "record to ring": self._receive,
            "ring to message": self._convert,
            "record to message": self._whole,
            "filter": self._filter,
            "memory (bytes)": self._memory,
        }

    def _pipeline(self, size: int = 4095) -> Pipeline:
        return Pipeline(Ring(size), 1_700_000_000 * 10**9, lambda: self._names)

    def _receive(self, count: int) -> float:
        pipeline, records = self._pipeline(), self._records
        start = time.process_time_ns()
        for number in range(count):
            pipeline.receive(records[number % RECORDS])
        return (time.process_time_ns() - start) / count

    def _flows(self) -> list[Flow]:
        pipeline = self._pipeline()
        for record in self._records:
            pipeline.receive(record)
        return [item for _, item in pipeline.ring.newest_first() if isinstance(item, Flow)]

    def _convert(self, count: int) -> float:
        flows = self._flows()
        start = time.process_time_ns()
        for number in range(count):
            convert.response(flows[number % len(flows)], ORIGIN)
        return (time.process_time_ns() - start) / count

    def _whole(self, count: int) -> float:
        pipeline, records = self._pipeline(), self._records
        start = time.process_time_ns()
        for number in range(count):
            pipeline.receive(records[number % RECORDS])
            item = pipeline.ring.at(number)
            assert isinstance(item, Flow)
            convert.response(item, ORIGIN).SerializeToString()
        return (time.process_time_ns() - start) / count

    def _filter(self, count: int) -> float:
        flows, matches = self._flows(), self._matches
        assert matches is not None
        start = time.process_time_ns()
        for number in range(count):
            matches(flows[number % len(flows)])
        return (time.process_time_ns() - start) / count

    def _memory(self, _count: int) -> float:
        """Fill a ring of the default size. A warm-up before excludes shared caches from the figure."""
        size = len(self._flows())
        gc.collect()
        tracemalloc.start()
        try:
            pipeline = self._pipeline()
            for record in self._records:
                # Copy the record, as the reader of the kernel's ring buffer does.
                pipeline.receive(bytes(bytearray(record)))
            gc.collect()
            return tracemalloc.get_traced_memory()[0] / size
        finally:
            tracemalloc.stop()


def main() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    scenarios = Work().scenarios
    print(json.dumps(list(scenarios)), flush=True)
    for line in sys.stdin:
        name, count = json.loads(line)
        print(scenarios[name](count), flush=True)


if __name__ == "__main__":
    main()
