"""What is there on this machine: images, and the boxes that run, with their owners."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from agentgym.sandboxes import image, reaper
from agentgym.sandboxes.client import worker_argv


@dataclass(frozen=True)
class RunningBox:
    """A box that runs.

    Attributes:
        backend: Name of its backend.
        name: Name of the container, or the number of the process.
        image: Name of the image in Docker, or the folder of the root file system.
        owner: Number of the process that opened it; None if it is no process of this machine.
        owner_dead: Whether that process is known to be gone.
    """

    backend: str
    name: str
    image: str
    owner: int | None
    owner_dead: bool


@dataclass(frozen=True)
class Image:
    """An image.

    Attributes:
        name: Name in Docker.
        docker_mb: Size in Docker, MB, None if it is not there.
        folder: Root file system for bubblewrap, None if there is none.
    """

    name: str
    docker_mb: int | None
    folder: str | None


def images(api: Any = None) -> list[Image]:
    """The images of this project; ``api`` is a client of Docker, None to look at the folders alone."""
    sizes: dict[str, int] = {}
    if api is not None:
        for row in api.images():
            sizes |= dict.fromkeys(row["RepoTags"] or (), round(row["Size"] / 1e6))
    folders = {name: image.rootfs_folder(name) for name in image.IMAGES}
    return [
        Image(full, sizes.get(full), str(folders[name]) if folders[name] else None)
        for name, full in image.IMAGES.items()
    ]


def containers(api: Any) -> list[RunningBox]:
    """The boxes in Docker."""
    boxes = []
    for row in api.containers(all=True, filters={"label": reaper.LABEL}):
        signed = row["Labels"][reaper.LABEL]
        name = row["Names"][0].lstrip("/") if row["Names"] else row["Id"][:12]
        boxes.append(RunningBox("docker", name, row["Image"], _owner(signed), reaper.is_dead(signed)))
    return boxes


def _owner(signed: str) -> int | None:
    """The process that signed so, if it is one of this machine."""
    place, pid, _ = signed.rsplit(".", 2)
    return int(pid) if reaper.owner().startswith(f"{place}.") else None


def processes() -> list[RunningBox]:
    """The boxes without Docker, as far as this user may see them."""
    worker = worker_argv()[-1][:100]
    workers = {pid: found for pid, found in _processes().items() if found.argv[-1].startswith(worker)}
    here = os.readlink("/proc/self/ns/pid")
    boxes = []
    for pid, found in workers.items():
        if found.parent in workers:  # the inner process of bubblewrap, a fork of the worker
            continue
        if os.path.basename(found.argv[0]) == "bwrap":
            root = found.argv[found.argv.index("--ro-bind") + 1]
            boxes.append(RunningBox("bubblewrap", str(pid), root, found.parent, found.parent == 1))
        elif found.space == here:
            boxes.append(RunningBox("unsafe-local", str(pid), "", found.parent, found.parent == 1))
    return boxes


class _Process(NamedTuple):
    parent: int
    argv: list[str]
    space: str


def _processes() -> dict[int, _Process]:
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            argv = (folder / "cmdline").read_bytes().decode(errors="replace").removesuffix("\0").split("\0")
            parent = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
            found[int(folder.name)] = _Process(parent, argv, os.readlink(folder / "ns/pid"))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def command_of(pid: int) -> str:
    """How a process was started, cut to a line; empty if it is gone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    text = " ".join(" ".join(words).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
