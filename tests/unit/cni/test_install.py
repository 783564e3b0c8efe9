"""`nodenet cni`: files that appear whole, in order, and only when they changed."""

from __future__ import annotations

import json
import shutil
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner

from nodenet.cli.cni import cni
from nodenet.cni import bundle, conf
from nodenet.cni.conflist import CONFLIST, Options
from nodenet.cni.install import install, uninstall
from nodenet.cni.ipam import Owner, Store, allocate
from nodenet.cni.records import Record, Records
from nodenet.errors import BadInputError, CannotRunError
from nodenet.model import Endpoint, ObjectRef

OPTIONS = Options(subnets=("10.5.0.0/24", "fd05::/64"), mtu=1400)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, bpf_cache: Path) -> Path:
    """A cache with what this version builds, made once between all tests: it takes seconds."""
    folder = tmp_path_factory.mktemp("cache")
    built = bundle.build(bpf_cache)
    shutil.copytree(built.launcher.parent, folder / built.launcher.parent.name)
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_install_twice_and_uninstall(tmp_path: Path, cache: Path) -> None:
    bin_dir, conf_dir = tmp_path / "bin", tmp_path / "net.d"
    executable, conflist = bin_dir / "nodenet", conf_dir / CONFLIST
    first = install(bin_dir, conf_dir, OPTIONS, cache)
    alone = next(path for path in first if path.name == "alone")
    assert list(first.items()) == [(alone, True), (executable, True), (conflist, True)]
    assert [path.stat().st_mode & 0o777 for path in first] == [0o755, 0o755, 0o600]
    body = json.loads(conflist.read_text())
    # An older runtime reads the first key, and takes no result of 1.1.0; a newer one the newest of the second.
    assert (body["cniVersion"], body["cniVersions"]) == ("1.0.0", ["1.0.0", "1.1.0"])
    for version in body["cniVersions"]:
        plugin = body["plugins"][0] | {"cniVersion": version, "name": body["name"]}
        assert conf.parse(json.dumps(plugin).encode(), {}).mtu == 1400
        assert "ipMasq" not in plugin
    before = conflist.stat().st_ino
    assert set(install(bin_dir, conf_dir, OPTIONS, cache).values()) == {False}
    assert conflist.stat().st_ino == before
    again = install(bin_dir, conf_dir, Options(("10.6.0.0/24",), ip_masq=True), cache)
    assert json.loads(conflist.read_text())["plugins"][0]["ipMasq"] is True
    assert again == {alone: False, executable: False, conflist: True}
    assert files(tmp_path) == {"bin/nodenet", f"bin/{alone.parent.name}/alone", f"net.d/{CONFLIST}"}
    assert list(uninstall(bin_dir, conf_dir).items()) == [(conflist, True), (executable, True), (alone, True)]
    assert set(uninstall(bin_dir, conf_dir).values()) == {False}
    assert files(tmp_path) == set()


def test_what_is_built_is_kept_and_follows_its_source(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bundle.build(cache)
    before = first.launcher.stat().st_mtime_ns
    assert bundle.build(cache) == first
    assert first.launcher.stat().st_mtime_ns == before
    monkeypatch.setattr(bundle, "_FLAGS", (*bundle._FLAGS, "-DSOMETHING"))
    second = bundle.build(cache)
    assert second.key != first.key
    # The launcher names the folder that goes with it.
    assert second.folder_name.encode() in second.launcher.read_bytes()
    assert {path.name for path in cache.iterdir()} == {f"cni-{first.key}", f"cni-{second.key}"}


def test_the_files_of_an_image_need_no_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The image is read-only, and has neither a compiler nor libpython's static library."""
    monkeypatch.setattr(bundle, "PREBUILT", cache)
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert bundle.build(tmp_path / "cache").launcher.is_relative_to(cache)
    assert not (tmp_path / "cache").exists()


def test_an_older_version_goes(tmp_path: Path, cache: Path) -> None:
    old = tmp_path / ".nodenet-0123456789ab"
    old.mkdir()
    (old / "alone").touch()
    (tmp_path / ".nodenet-mine").mkdir()
    install(tmp_path, tmp_path / "net.d", OPTIONS, cache)
    assert not old.exists()
    uninstall(tmp_path, tmp_path / "net.d")
    assert files(tmp_path) == set()
    assert (tmp_path / ".nodenet-mine").is_dir()


def test_a_missing_library_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = bundle.sysconfig.get_config_var
    monkeypatch.setattr(bundle.sysconfig, "get_config_var", lambda name: "/no" if name == "LIBPL" else real(name))
    with pytest.raises(CannotRunError, match=r"/no/libpython.* is missing") as told:
        install(tmp_path / "bin", tmp_path / "net.d", OPTIONS, tmp_path / "cache")
    assert "apt-get install libpython3" in told.value.hint
    assert files(tmp_path) == set()


def test_without_a_subnet_the_agent_is_asked(tmp_path: Path, cache: Path) -> None:
    arguments = ["install", "--bin-dir", str(tmp_path / "bin"), "--conf-dir", str(tmp_path / "net.d")]
    done = CliRunner().invoke(cni, [*arguments, "--cache-dir", str(cache)])
    assert done.exit_code == 0, done.output
    plugin = json.loads((tmp_path / "net.d" / CONFLIST).read_text())["plugins"][0]
    assert plugin["ipam"] == {"type": "host-local", "dataDir": "/var/lib/cni/networks"}


def test_the_installed_plugin_answers(tmp_path: Path, cache: Path) -> None:
    install(tmp_path, tmp_path / "net.d", OPTIONS, cache)
    config = json.dumps({"cniVersion": "1.0.0", "agentSocket": str(tmp_path / "nobody")})
    done = subprocess.run(
        [tmp_path / "nodenet"], env={"CNI_COMMAND": "VERSION"}, input=config.encode(), capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["cniVersion"] == "1.0.0"


def test_bad_options_write_nothing(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(BadInputError, match=r"conflist nodenet: network nodenet: ipam\.ranges\[0\]\[0\]\.subnet"):
        install(tmp_path / "bin", tmp_path / "net.d", Options(("10.5.0.1/24",)), cache)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_told(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "bin").touch()
    with pytest.raises(CannotRunError, match="bin"):
        install(tmp_path / "bin", tmp_path / "net.d", OPTIONS, cache)
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


@pytest.mark.parametrize(("flags", "required"), [((), True), (("--no-require-agent",), False)])
def test_no_pod_starts_without_an_agent_unless_somebody_says_so(
    tmp_path: Path, cache: Path, flags: tuple[str, ...], required: bool
) -> None:
    argv = ["--bin-dir", str(tmp_path), "--conf-dir", str(tmp_path), "--cache-dir", str(cache), *flags]
    done = CliRunner().invoke(cni, ["install", *argv])
    assert done.exit_code == 0, done.output
    (plugin,) = json.loads((tmp_path / CONFLIST).read_text())["plugins"]
    assert plugin["requireAgent"] is required
    assert Options().require_agent
