"""Regions: a partition, whose numbers never change their meaning."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from netpolicy.entries import port_prefixes
from netpolicy.regions import Prefix, Region, Regions, partition
from netpolicy.types import IPAddress, IPBlock
from tests.unit.netpolicy.strategies import OUTSIDE, blocks

ADDRESSES = [ip_address(ip) for ip in (*OUTSIDE, *(f"10.0.0.{n}" for n in range(9)), "2001:db8::1", "2001:db8::2")]


def prefix(text: str) -> Prefix:
    return Prefix.of(ip_network(text))


def region_of(regions: tuple[Region, ...], address: IPAddress) -> Region | None:
    host = Prefix.host(address)
    around = [region for region in regions if region.prefix.covers(host)]
    return max(around, key=lambda region: region.prefix.length, default=None)


def test_holes_are_the_maximal_prefixes_inside() -> None:
    found = partition(map(prefix, ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16", "192.0.2.0/24"]))
    assert found == (
        Region(prefix("10.0.0.0/8"), (prefix("10.1.0.0/16"), prefix("10.2.0.0/16"))),
        Region(prefix("10.1.0.0/16"), (prefix("10.1.2.0/24"),)),
        Region(prefix("10.1.2.0/24"), ()),
        Region(prefix("10.2.0.0/16"), ()),
        Region(prefix("192.0.2.0/24"), ()),
    )


def test_all_of_ipv6_does_not_hold_ipv4() -> None:
    """In the map IPv4 is a part of ::/0: it gets a region of its own there, which no IPv6 block contains."""
    everything = IPBlock(ip_network("::/0"))
    regions = Regions(partition([prefix("::/0")]))
    assert [str(region.prefix) for region in regions.regions] == ["::/0", "0.0.0.0/0"]
    assert [str(region.prefix) for region in regions.inside(everything)] == ["::/0"]


@given(st.lists(blocks(), min_size=1, max_size=4))
def test_a_block_is_the_addresses_of_its_regions(raw: list[dict[str, dict[str, str]]]) -> None:
    found = [
        IPBlock(ip_network(b["ipBlock"]["cidr"]), tuple(map(ip_network, b["ipBlock"].get("except", ())))) for b in raw
    ]
    regions = Regions(partition(Prefix.of(net) for block in found for net in (block.cidr, *block.excepts)))
    for block in found:
        inside = regions.inside(block)
        for address in ADDRESSES:
            assert (region_of(regions.regions, address) in inside) is (address in block)


@given(st.sets(st.sampled_from(["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/29", "10.0.0.4/30", "10.0.0.2/32", "::/0"])))
def test_a_region_that_two_partitions_share_covers_the_same(names: set[str]) -> None:
    before, after = partition(map(prefix, names)), partition(map(prefix, {*names, "10.0.0.4/31"}))
    for address in ADDRESSES:
        old, new = region_of(before, address), region_of(after, address)
        assert old == new or (old not in after and new not in before)


def test_no_policies_no_regions() -> None:
    assert partition([]) == ()


@given(st.integers(1, 65535), st.integers(0, 65535))
def test_port_prefixes_cover_a_range_exactly(first: int, more: int) -> None:
    last = min(65535, first + more)
    covered = [range(port, port + (1 << (16 - bits))) for port, bits in port_prefixes(first, last)]
    assert [span.start for span in covered] == [first, *(span.stop for span in covered[:-1])]
    assert covered[-1].stop == last + 1
    assert all(span.start % len(span) == 0 for span in covered)
    assert len(covered) <= 30
