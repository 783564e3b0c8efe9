"""A real systemd-networkd whose configuration matches every interface, in a namespace with folders of its own."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from nodenet.link import netns, networkd
from nodenet.link.handle import Link
from tests.netns.link.test_uplink import ip

NETWORKD = Path("/usr/lib/systemd/systemd-networkd")

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not NETWORKD.exists(), reason=f"{NETWORKD} is not installed (Debian: systemd)"),
]

PORT = "veth0123456789a"
# Without udev, networkd takes every interface at once if /sys is read-only, as in a container.
SCRIPT = f"""
mount -t sysfs -o ro none /sys
mount -t tmpfs none /run
mount -t tmpfs none /etc/systemd/network
mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/network
chown -R systemd-network /run/systemd/netif
printf '[Match]\\nType=ether\\n[Network]\\nDHCP=yes\\n' >/etc/systemd/network/10-all.network
cp "$1"/* /run/systemd/network/ 2>/dev/null
exec {NETWORKD}
"""


def master(node: str) -> int:
    with Link(node) as link:
        return link.require(PORT).master


@pytest.mark.parametrize("ours", [True, False])
def test_networkd_leaves_a_pods_interface_alone(two: tuple[str, str], tmp_path: Path, ours: bool) -> None:
    """Without the file it takes the interface out of the bridge: that is what the file is for."""
    node, pod = two
    for words in (
        "link add cni0 type bridge",
        f"link add {PORT} type veth peer name eth0 netns {pod}",
        f"link set {PORT} master cni0 up",
        "link set cni0 up",
        # The interface that shows that networkd has seen all.
        f"link add other type veth peer name other netns {pod}",
    ):
        ip(node, words)
    if ours:
        networkd.leave_alone("cni0", tmp_path)
    command = ["unshare", "-m", "--propagation", "private", "bash", "-c", SCRIPT, "networkd", str(tmp_path)]
    process = netns.popen(node, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not is_up(node, "other"):
            assert process.poll() is None
            assert time.monotonic() < deadline, "networkd configures no interface"
            time.sleep(0.05)
        time.sleep(1)
        assert bool(master(node)) is ours
    finally:
        process.terminate()
        process.wait(10)


def is_up(node: str, name: str) -> bool:
    with Link(node) as link:
        return link.require(name).up
