"""docs/services.md lists every field that decides about traffic to Services and hostPorts."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from nodenet.decode import schema

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "services.md").read_text()
# v1.ServiceSpec, v1.ServicePort, v1.LoadBalancerIngress and v1.ContainerPort of Kubernetes 1.36.
API = {
    "Service spec": """
        allocateLoadBalancerNodePorts clusterIP clusterIPs externalIPs externalName externalTrafficPolicy
        healthCheckNodePort internalTrafficPolicy ipFamilies ipFamilyPolicy loadBalancerClass loadBalancerIP
        loadBalancerSourceRanges ports publishNotReadyAddresses selector sessionAffinity sessionAffinityConfig
        trafficDistribution type""",
    "Service spec.ports[]": "appProtocol name nodePort port protocol targetPort",
    "Service status.loadBalancer.ingress[]": "hostname ip ipMode ports",
    "Pod spec.containers[].ports[]": "containerPort hostIP hostPort protocol",
}
DECODED = {
    "Service spec": schema.ServiceSpec,
    "Service spec.ports[]": schema.Port,
    "Service status.loadBalancer.ingress[]": schema.LoadBalancerIngress,
    "Pod spec.containers[].ports[]": schema.ContainerPort,
}


def listed() -> dict[str, dict[str, str]]:
    """Object -> field -> the second column of its row."""
    section = TEXT.split("## Every field\n")[1].split("\n## ")[0]
    found: dict[str, dict[str, str]] = {place: {} for place in API}
    for kind, names, here in re.findall(r"^\| (Service|Pod) (`.*?`) \| (.*?) \|", section, re.MULTILINE):
        place = ""
        for name in re.findall(r"`(.*?)`", names):
            path, _, last = name.rpartition(".")
            place = f"{kind} {path}" if path else place
            found[place][last] = here
    return found


@pytest.mark.parametrize("place", API)
def test_every_field_of_the_api_is_listed(place: str) -> None:
    # The ports of spec.ports have rows of their own.
    assert set(listed()[place]) | ({"ports"} if place == "Service spec" else set()) == set(API[place].split())


@pytest.mark.parametrize("place", API)
def test_a_field_that_is_not_decoded_is_listed_as_not_read(place: str) -> None:
    decoded = {field.encode_name for field in msgspec.structs.fields(DECODED[place])}
    rows = listed()[place]
    # They are in the row of another field: the families, and the name of an ExternalName.
    shared = {"ipFamilies", "ipFamilyPolicy", "externalName"}
    assert {name for name, here in rows.items() if here.startswith("not read: ")} == rows.keys() - decoded - shared


def test_each_served_field_names_a_test_that_exists() -> None:
    section = TEXT.split("## Every field\n")[1].split("\n## ")[0]
    files = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for row in re.findall(r"^\| (?:Service|Pod|label) .*", section, re.MULTILINE):
        _, _, here, tests, _ = (cell.strip() for cell in row.split("|"))
        names = re.findall(r"`(test_\w+)`", tests)
        assert names or here.startswith("not read: "), row
        for name in names:
            assert f"def {name}(" in files, f"{name} is no test"
