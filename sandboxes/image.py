"""The sandbox image: its names, and how it is made, for Docker and as a folder for bubblewrap.

Offline it is made from the system's own packages (`agentgym.sandboxes.debian`) as a folder,
``$AGENTGYM_CACHE/sandbox/base`` or ``.../data``, which is what bubblewrap boxes have as ``/``; Docker imports that
folder. The same packages give the same bytes. With a registry, ``Dockerfile`` beside this file gives a like image.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentgym.sandboxes import debian
from agentgym.sandboxes.base import SandboxUnavailable

from agentgym.errors import ConfigError

BASE_IMAGE = "agentgym-sandbox:base"
DATA_IMAGE = "agentgym-sandbox:data"
IMAGES = {"base": BASE_IMAGE, "data": DATA_IMAGE}
PATH = "/usr/local/bin:/usr/bin:/bin"

# a box of Docker without a network has an empty /etc/hosts: libnss-myhostname knows localhost without it
_BASE = (
    "base-files bash coreutils dash debianutils diffutils findutils grep gzip libnss-myhostname mawk python3 sed tar"
)
_PACKAGES = {
    "base": _BASE.split(),
    # a box has few CPUs: the linear algebra library without threads is the right one
    "data": [*_BASE.split(), "libopenblas0-serial", "python3-pandas", "python3-scipy", "python3-sklearn"],
}
_KEY_LABEL = "agentgym.sandbox.key"
_CHANGES = [f"ENV PATH={PATH}", "ENV LANG=C.UTF-8", "WORKDIR /workspace", 'CMD ["bash"]']


def full_name(image: str) -> str:
    """The name in Docker of ``base`` and ``data``; any other name is one already."""
    return IMAGES.get(image, image)


def short_name(image: str) -> str:
    """``base`` or ``data``, from that or from the name in Docker.

    Raises:
        ConfigError: If it is neither.
    """
    for short, full in IMAGES.items():
        if image in (short, full):
            return short
    raise ConfigError(f"unknown sandbox image {image!r}: choose {' or '.join(IMAGES)}")


def cache_folder() -> Path:
    """Where the root file systems are: ``$AGENTGYM_CACHE/sandbox``, by default ``~/.cache/agentgym/sandbox``."""
    return Path(os.environ.get("AGENTGYM_CACHE") or Path.home() / ".cache" / "agentgym") / "sandbox"


def rootfs_folder(image: str) -> Path | None:
    """The root file system of an image for bubblewrap, None if `build` has not made it yet."""
    folder = cache_folder() / short_name(image)
    return folder.resolve() if folder.is_dir() else None


def build(image: str, say: Callable[[str], None] = lambda _: None) -> Path:
    """Make the root file system of an image from the system's packages, unless it is there, and return its folder.

    The folder appears whole or not at all. Folders of earlier packages stay, as boxes may be running in them, until
    `remove_old`.

    Args:
        image: ``base`` or ``data``.
        say: Is told what is being done.

    Raises:
        MissingDependency: If apt-get or its lists are not here, or the packages cannot be had.
    """
    name = short_name(image)
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in cache.glob(".building-*"):  # of a build that was killed
            _remove(left)
        stamp = cache / f".{name}.stamp"
        wanted = _digest(debian.lists(), _PACKAGES[name])
        current = rootfs_folder(name)
        if current and stamp.is_file() and stamp.read_text() == f"{wanted} {current.name}":
            return current  # nothing has changed: apt need not be asked, which takes seconds
        packages = debian.resolve(_PACKAGES[name])
        folder = cache / f"{name}-{_digest(packages)}"
        if not folder.is_dir():
            work = Path(tempfile.mkdtemp(dir=cache, prefix=".building-"))
            try:
                _make(packages, work, say)
                (work / "root").rename(folder)
            finally:
                _remove(work)
        link = cache / f".building-{name}"
        link.symlink_to(folder.name)
        link.rename(cache / name)
        stamp.write_text(f"{wanted} {folder.name}")
    return folder.resolve()


def _make(packages: dict[str, str], work: Path, say: Callable[[str], None]) -> None:
    say(f"downloading {len(packages)} packages")
    (work / "packages").mkdir()
    archives = debian.fetch(packages, work / "packages")
    say("unpacking them")
    (work / "root").mkdir()
    debian.unpack(archives, work / "root")
    say("compiling the Python modules")
    debian.precompile(work / "root")
    debian.set_modes(work / "root")


def _remove(path: Path) -> None:
    path.unlink() if path.is_symlink() else shutil.rmtree(path)


def _digest(*parts: object) -> str:
    """Name of what these make with the code that unpacks them."""
    return hashlib.sha256(Path(debian.__file__).read_bytes() + repr(parts).encode()).hexdigest()[:12]


def remove_old() -> list[Path]:
    """Remove root file systems that newer ones have replaced and no process has mounted; return those removed."""
    current = {rootfs_folder(name) for name in IMAGES}
    removed = []
    for folder in sorted(cache_folder().glob("*-*")):
        ours = re.fullmatch(r"(base|data)-[0-9a-f]{12}", folder.name)
        if ours and folder.resolve() not in current and not _mounted(folder):
            shutil.rmtree(folder)
            removed.append(folder)
    return removed


def _mounted(folder: Path) -> bool:
    for mounts in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            if f"/{folder.name} /" in mounts.read_text(errors="replace"):
                return True
        except OSError:  # the process ended, or is another user's
            continue
    return False


def load(image: str, api: Any, say: Callable[[str], None] = lambda _: None) -> str:
    """Make an image from the system's packages and import it into Docker, unless it is there; return its id.

    Args:
        image: ``base`` or ``data``.
        api: Client, from `agentgym.sandboxes.docker.client`.
        say: Is told what is being done.

    Raises:
        MissingDependency: As `build` does.
    """
    import docker

    folder = build(image, say)
    full = full_name(short_name(image))
    key = folder.name.rpartition("-")[2]
    try:
        present = api.inspect_image(full)
    except docker.errors.ImageNotFound:
        present = None
    if present and ((present["Config"] or {}).get("Labels") or {}).get(_KEY_LABEL) == key:
        return str(present["Id"])
    say("importing it into Docker")
    repository, tag = full.split(":")
    with tempfile.TemporaryFile(dir=cache_folder()) as file:
        debian.write_tar(folder, file)
        file.seek(0)
        changes = [*_CHANGES, f"LABEL {_KEY_LABEL}={key}"]
        api.import_image_from_data(file, repository=repository, tag=tag, changes=changes)
    if present and present["RepoTags"] == [full]:
        with contextlib.suppress(docker.errors.APIError):  # a container still uses it
            api.remove_image(present["Id"])
    return str(api.inspect_image(full)["Id"])


def build_with_registry(image: str, api: Any, say: Callable[[str], None] = lambda _: None) -> str:
    """Build an image from the Dockerfile beside this file and return its id; the daemon must reach a registry.

    Raises:
        SandboxUnavailable: If the build fails.
    """
    import docker

    full = full_name(short_name(image))
    try:
        for line in api.build(
            path=str(Path(__file__).parent), target=short_name(image), tag=full, rm=True, decode=True
        ):
            if "error" in line:
                raise SandboxUnavailable(_no_build(line["error"]))
            if text := line.get("stream", "").strip():
                say(text)
    except docker.errors.APIError as error:
        raise SandboxUnavailable(_no_build(str(error.explanation))) from error
    return str(api.inspect_image(full)["Id"])


def _no_build(reason: str) -> str:
    return f"the image cannot be built: {reason.strip()}; without a registry use --offline"
