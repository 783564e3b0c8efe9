"""VLANs and isolated ports of a bridge with traffic, in a kernel whose bridges know VLANs: in a virtual machine.

Skipped where no virtual machine can run or the kernel cannot be had. `vlan` is compared with the reference plugin; what
Debian 12's does not have (vlanTrunk, preserveDefaultVlan, portIsolation) is only tried.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nodenet.errors import CannotRunError
from perf.vlan_check import GATEWAYS, OURS_ONLY, PODS, REFERENCE
from perf.vm import cannot_run, get_kernel, run_in_vm

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(200)]

ROOT = Path(__file__).parents[2]


def test_vlans_and_isolated_ports_have_traffic() -> None:
    if reason := cannot_run():
        pytest.skip(reason)
    if os.environ.get("NODENET_KERNELS") == "":
        pytest.skip("NODENET_KERNELS is empty")
    try:
        kernel = get_kernel("6.1")
    except CannotRunError as error:
        pytest.skip(f"kernel 6.1: {error}")
    command = [str(ROOT / ".venv/bin/python"), "-m", "perf.vlan_check"]
    result = run_in_vm(kernel, command, cwd=ROOT, timeout=150)
    assert result.status == 0, result.console[-3000:]
    answer = json.loads(result.output)
    assert "error" not in answer, (answer, result.console[-3000:])
    checks = answer["checks"]
    wrong = [f"{part}: {what}: {text}" for part, found in checks.items() for what, text in found.items() if text]
    assert wrong == []
    # Every pod was asked about, and nothing was left out.
    assert checks["left"].keys() == PODS.keys() | OURS_ONLY.keys() | GATEWAYS.keys()
    assert len(checks["ours"]) > 25
    if REFERENCE.exists():
        assert checks["bridge vlan show"].keys() == PODS.keys() | GATEWAYS.keys()
