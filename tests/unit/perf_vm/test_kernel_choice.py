"""Which kernel is taken, and where from."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodenet.errors import BadInputError, CannotRunError
from perf.vm import kernels


def test_every_choice_names_its_packages() -> None:
    matching = {
        "5.10": "linux-image-5.10.0-46-cloud-amd64",
        "6.1": "linux-image-6.1.0-56-cloud-amd64",
        "6.12": "linux-image-6.12.117+deb12-cloud-amd64",
        "6.18": "linux-image-6.18.15+deb13-cloud-amd64",
        "newest": "linux-binary-7.3.4+deb13-cloud-amd64",
    }
    for name, package in matching.items():
        assert [c.name for c in kernels.CHOICES.values() if c.pattern.fullmatch(package)] == [name]


@pytest.mark.parametrize(
    "package",
    [
        "linux-image-6.1.0-0.deb11.52-cloud-amd64",  # another release's rebuild
        "linux-image-6.12-cloud-amd64",  # no version of its own
        "linux-image-6.12.117+deb12-cloud-amd64-dbg",
        "linux-headers-6.18.15+deb13-cloud-amd64",
    ],
)
def test_other_packages_are_not_taken(package: str) -> None:
    assert not any(choice.pattern.fullmatch(package) for choice in kernels.CHOICES.values())


def test_newest_in_the_cache_is_taken_by_number(tmp_path: Path) -> None:
    for release in ("6.12.9+deb12", "6.12.117+deb12", "6.12.90+deb13.1", "6.1.0-56"):
        (tmp_path / f"{release}-cloud-amd64").mkdir()
    found = kernels.get_kernel("6.12", tmp_path)
    assert found.release == "6.12.117+deb12-cloud-amd64"
    assert found.modules == found.folder / "lib/modules/6.12.117+deb12-cloud-amd64"
    assert kernels.cached(kernels.CHOICES["5.10"], tmp_path) is None


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(BadInputError, match=r"'4\.4'") as caught:
        kernels.get_kernel("4.4")
    assert "5.10" in caught.value.hint


def apt(monkeypatch: pytest.MonkeyPatch, release: dict[str, str], targets: str) -> None:
    monkeypatch.setattr(kernels, "_os_release", lambda: release)
    monkeypatch.setattr(kernels, "_run", lambda *arguments, **options: targets)


def test_mirror_is_the_machines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = "http://a.example/debian/ bookworm\nhttp://b.example/security/ bookworm-security\n"
    apt(monkeypatch, {"ID": "debian", "VERSION_CODENAME": "bookworm"}, targets)
    assert kernels.mirror("trixie-backports") == "http://a.example/debian/"
    assert kernels.mirror("bullseye-security") == "http://b.example/security/"


def test_a_missing_mirror_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    apt(monkeypatch, {"ID": "debian", "VERSION_CODENAME": "bookworm"}, "http://a.example/debian/ bookworm\n")
    with pytest.raises(CannotRunError, match="no bookworm-security: nowhere to fetch bullseye-security"):
        kernels.mirror("bullseye-security")
    apt(monkeypatch, {"ID": "ubuntu", "VERSION_CODENAME": "noble"}, "")
    with pytest.raises(CannotRunError, match="only on Debian"):
        kernels.mirror("trixie-backports")


def test_a_missing_tool_is_reported_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotRunError, match="apt-get") as caught:
        kernels.get_kernel("6.12", tmp_path / "cache")
    assert "apt-get install" in caught.value.hint
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]
