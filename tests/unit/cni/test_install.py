"""`nodenet cni`: files that appear whole, in order, and only when they changed."""

from __future__ import annotations

import json
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner

from nodenet.cli.cni import cni
from nodenet.cni import conf
from nodenet.cni.install import CONFLIST, Options, install, uninstall
from nodenet.cni.ipam import Owner, Store, allocate
from nodenet.cni.records import Record, Records
from nodenet.errors import BadInputError, CannotRunError
from nodenet.model import Endpoint, ObjectRef

OPTIONS = Options(subnets=("10.5.0.0/24", "fd05::/64"), mtu=1400)


def test_install_twice_and_uninstall(tmp_path: Path) -> None:
    bin_dir, conf_dir = tmp_path / "bin", tmp_path / "net.d"
    executable, conflist = bin_dir / "nodenet", conf_dir / CONFLIST
    assert list(install(bin_dir, conf_dir, OPTIONS).items()) == [(executable, True), (conflist, True)]
    assert executable.stat().st_mode & 0o777 == 0o755
    body = json.loads(conflist.read_text())
    plugin = body["plugins"][0] | {"cniVersion": body["cniVersion"], "name": body["name"]}
    assert conf.parse(json.dumps(plugin).encode(), {}).mtu == 1400
    before = conflist.stat().st_ino
    assert set(install(bin_dir, conf_dir, OPTIONS).values()) == {False}
    assert conflist.stat().st_ino == before
    assert install(bin_dir, conf_dir, Options(("10.6.0.0/24",))) == {executable: False, conflist: True}
    assert {path.name for path in tmp_path.rglob("*")} == {"bin", "net.d", "nodenet", CONFLIST}
    assert list(uninstall(bin_dir, conf_dir).items()) == [(conflist, True), (executable, True)]
    assert set(uninstall(bin_dir, conf_dir).values()) == {False}


def test_the_installed_copy_finds_its_package(tmp_path: Path) -> None:
    install(tmp_path, tmp_path / "net.d", OPTIONS)
    config = json.dumps({"cniVersion": "1.0.0", "agentSocket": str(tmp_path / "nobody")})
    done = subprocess.run(
        [tmp_path / "nodenet"], env={"CNI_COMMAND": "VERSION"}, input=config.encode(), capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["cniVersion"] == "1.0.0"


def test_bad_options_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"conflist nodenet: network nodenet: ipam\.ranges\[0\]\[0\]\.subnet"):
        install(tmp_path / "bin", tmp_path / "net.d", Options(("10.5.0.1/24",)))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "bin").touch()
    with pytest.raises(CannotRunError, match="bin"):
        install(tmp_path / "bin", tmp_path / "net.d", OPTIONS)
    assert not (tmp_path / "net.d").exists()


def test_a_foreign_executable_is_left(tmp_path: Path) -> None:
    (tmp_path / "nodenet").write_text("#!/bin/sh\n")
    with pytest.raises(CannotRunError, match="not nodenet's executable"):
        uninstall(tmp_path, tmp_path)
    assert (tmp_path / "nodenet").exists()


def test_leases_command(tmp_path: Path) -> None:
    sets = conf.range_sets({"ranges": [[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd05::/64"}]]}, None)
    allocate(Store(tmp_path / "leases", "net"), Owner("c1", "eth0"), sets)
    allocate(Store(tmp_path / "leases", "net"), Owner("other", "eth0"), sets)
    records = Records(tmp_path)
    owner = Owner("c1", "eth0")
    addresses = (ip_address("10.5.0.2"),)
    number = records.allocate_id(owner)
    endpoint = Endpoint(number, "c1", "eth0", "", "veth1", 5, "0a:58:0a:05:00:02", addresses, ObjectRef("shop", "web"))
    records.put(Record(endpoint, "net", tmp_path / "leases"))
    arguments = ["leases", "--data-dir", str(tmp_path / "leases"), "--run-dir", str(tmp_path), "-o", "json"]
    rows = json.loads(CliRunner().invoke(cni, arguments).stdout)
    assert [(row["address"], row["container"], row["pod"]) for row in rows] == [
        ("10.5.0.2", "c1", "web"),
        ("10.5.0.3", "other", ""),
        ("fd05::2", "c1", "web"),
        ("fd05::3", "other", ""),
    ]
    table = CliRunner().invoke(cni, arguments[:-2]).stdout
    assert "net      10.5.0.2  c1         eth0       shop       web" in table
