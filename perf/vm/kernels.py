"""Debian's cloud kernels: chosen by pattern, downloaded with a private apt root, and cached.

The mirror and the trusted keys are those of this machine's apt configuration. The machine's apt state is not changed:
sources, lists and downloads of the private root are in the cache.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nodenet.errors import BadInputError, CannotRunError
from perf.vm import image

CACHE = Path("/var/cache/nodenet/kernels")
_ARCHITECTURE = "amd64"
# Debian's keyring for all current and past releases, with its names in Debian 13 and 12.
_KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
)
_FETCH_TIMEOUT = 180
_DRAFT = ".draft-"


@dataclass(frozen=True, slots=True)
class Choice:
    """What a short name stands for: the newest kernel package of `suite` whose version matches the regular expression
    `versions`."""

    name: str
    suite: str
    versions: str

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(rf"linux-(?:image|binary)-({self.versions})-cloud-{_ARCHITECTURE}")


# 5.10 is the oldest supported kernel. "newest" is the current one of Debian's backports.
CHOICES = {
    choice.name: choice
    for choice in (
        Choice("5.10", "bullseye-security", r"5\.10\.0-\d+"),
        Choice("6.1", "bookworm-security", r"6\.1\.0-\d+"),
        Choice("6.12", "bookworm-security", r"6\.12\.\d+\+deb\d+(?:\.\d+)*"),
        Choice("6.18", "trixie-backports", r"6\.18\.\d+\+deb\d+(?:\.\d+)*"),
        Choice("newest", "trixie-backports", r"[789]\.\d+\.\d+\+deb\d+(?:\.\d+)*"),
    )
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in the cache. `folder` holds vmlinux, config and lib/modules/<release>."""

    name: str
    release: str
    folder: Path

    @property
    def vmlinux(self) -> Path:
        return self.folder / "vmlinux"

    @property
    def modules(self) -> Path:
        return self.folder / "lib" / "modules" / self.release


def names() -> list[str]:
    """The short names, oldest kernel first."""
    return list(CHOICES)


def get_kernel(name: str, cache: Path = CACHE, *, refresh: bool = False) -> Kernel:
    """The kernel of that short name, from the cache or downloaded now (a few seconds).

    `refresh` asks the mirror for a newer one. Raises BadInputError for an unknown name, CannotRunError with the reason
    if the kernel is not available.
    """
    choice = CHOICES.get(name)
    if choice is None:
        raise BadInputError(f"kernel {name!r} is not known", f"known: {', '.join(CHOICES)}")
    if not refresh and (found := cached(choice, cache)):
        return found
    with _locked(cache):
        return (None if refresh else cached(choice, cache)) or _fetch(choice, cache)


def cached(choice: Choice, cache: Path = CACHE) -> Kernel | None:
    """The newest cached kernel of a choice, or None."""
    found = [folder for folder in cache.glob("*-cloud-*") if choice.pattern.fullmatch(f"linux-image-{folder.name}")]
    if not found:
        return None
    folder = max(found, key=lambda path: _order(path.name))
    return Kernel(choice.name, folder.name, folder)


def _order(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Hold the lock of the cache, so that two processes do not download the same kernel at the same time."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        fd = os.open(cache / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise CannotRunError(f"kernels cannot be kept in {cache}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _fetch(choice: Choice, cache: Path) -> Kernel:
    for tool in ("apt-get", "dpkg-deb", "depmod"):
        if not shutil.which(tool):
            raise CannotRunError(f"a kernel cannot be fetched without {tool}", "Debian: apt-get install apt dpkg kmod")
    for old in cache.glob(f"{_DRAFT}*"):  # left by a killed run, because this one has the lock
        shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_DRAFT, dir=cache) as draft:
        apt = _Apt(Path(draft))
        apt.update(choice.suite)
        packages, release = apt.newest(choice)
        target = cache / release
        if not target.exists():
            unpacked = Path(draft) / "unpacked"
            apt.unpack(packages, unpacked)
            _arrange(unpacked, release).rename(target)
    return Kernel(choice.name, release, target)


def _arrange(unpacked: Path, release: str) -> Path:
    """Make the cache folder of one kernel from its unpacked packages."""
    ready = unpacked.parent / "ready"
    modules = ready / "lib" / "modules" / release
    modules.parent.mkdir(parents=True)
    # Newer packages use the merged /usr.
    for place in ("lib/modules", "usr/lib/modules"):
        if (unpacked / place / release).is_dir():
            shutil.copytree(unpacked / place / release, modules, dirs_exist_ok=True, symlinks=True)
    found = [*unpacked.glob("boot/vmlinuz-*"), modules / "vmlinuz"]
    bzimage = next((path for path in found if path.is_file()), None)
    if bzimage is None or not (modules / "modules.builtin").is_file():
        raise CannotRunError(f"the packages of kernel {release} have no image or no modules")
    (ready / "vmlinux").write_bytes(image.vmlinux(bzimage.read_bytes()))
    for config in [*unpacked.glob("boot/config-*"), modules / "config"]:
        if config.is_file():
            shutil.copyfile(config, ready / "config")
    _run(["depmod", "-b", str(ready), release], "depmod")
    return ready


class _Apt:
    """A private apt root in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("lists/partial", "cache/archives/partial", "debs"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        self.options = [
            f"-oDir::Etc::sourcelist={folder}/sources.list",
            "-oDir::Etc::sourceparts=-",
            "-oDir::Etc::preferences=-",
            "-oDir::Etc::preferencesparts=-",
            f"-oDir::State::lists={folder}/lists",
            f"-oDir::State::status={folder}/status",
            f"-oDir::Cache={folder}/cache",
            f"-oAPT::Architecture={_ARCHITECTURE}",
            "-oAPT::Sandbox::User=root",
            "-oAcquire::Languages=none",
            "-oAPT::Update::Error-Mode=any",
            "-oAcquire::Retries=0",
            "-oAcquire::http::Timeout=10",
            "-oAcquire::https::Timeout=10",
        ]

    def update(self, suite: str) -> None:
        keyring = next((f"[signed-by={path}] " for path in _KEYRINGS if path.exists()), "")
        (self.folder / "sources.list").write_text(f"deb {keyring}{mirror(suite)} {suite} main\n")
        _run(["apt-get", *self.options, "-qq", "update"], f"the package list of {suite}")

    def newest(self, choice: Choice) -> tuple[list[str], str]:
        """(packages, release) of the newest matching version."""
        known = _run(["apt-cache", *self.options, "pkgnames", "linux-"], "apt-cache").split()
        found = {match[1] for name in known if (match := choice.pattern.fullmatch(name))}
        if not found:
            raise CannotRunError(f"the mirror has no cloud kernel {choice.name} in {choice.suite}")
        release = f"{max(found, key=_order)}-cloud-{_ARCHITECTURE}"
        # From 7.2 on, the image package is empty and these three packages have its former content.
        split = [f"linux-{part}-{release}" for part in ("binary", "modules", "base")]
        return (split if set(split) <= set(known) else [f"linux-image-{release}"]), release

    def unpack(self, packages: Sequence[str], target: Path) -> None:
        debs = self.folder / "debs"
        _run(["apt-get", *self.options, "-qq", "download", *packages], f"fetching {packages[0]}", cwd=debs)
        for deb in debs.glob("*.deb"):
            _run(["dpkg-deb", "-x", str(deb), str(target)], f"unpacking {deb.name}")


def mirror(suite: str) -> str:
    """The mirror from which this machine would download a suite: for a security suite the mirror of its own security
    updates, else the mirror of its release. Raises CannotRunError if there is none."""
    release = _os_release()
    own = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or not own:
        raise CannotRunError("Debian's kernels are fetched only on Debian: this machine's apt knows no Debian mirror")
    wanted = f"{own}-security" if suite.endswith("-security") else own
    listed = _run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"], "apt's sources"
    )
    for line in listed.splitlines():
        uri, _, name = line.partition(" ")
        if name.strip() == wanted:
            return uri
    raise CannotRunError(f"apt's sources on this machine have no {wanted}: nowhere to fetch {suite} from")


def _os_release() -> dict[str, str]:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}


def _run(command: Sequence[str], what: str, cwd: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_FETCH_TIMEOUT, check=False, cwd=cwd, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise CannotRunError(f"{what}: no answer in {_FETCH_TIMEOUT} s") from error
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        # Remove the mirror's address: it is a detail of this machine and must not be in reports.
        raise CannotRunError(f"{what} failed: {re.sub(r'://[^/ ]+', '://...', words[0])}")
    return done.stdout
