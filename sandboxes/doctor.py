"""``agentgym sandbox doctor``: what each backend needs, what is missing, and the command that mends it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from agentgym.sandboxes import debian, docker, image, local
from agentgym.sandboxes.base import Limits
from agentgym.sandboxes.cgroup import Cgroup

from agentgym.doctor import Finding
from agentgym.errors import AgentGymError

_BUILD = "agentgym sandbox build --offline"
_LIMITS = {"MemoryLimit": "memory", "SwapLimit": "swap", "PidsLimit": "processes", "CpuCfsQuota": "CPU time"}


def examine() -> list[Finding]:
    """Look at everything."""
    return [*_docker(), bubblewrap(), *_bubblewrap_parts(), *_offline(), _choice()]


def _docker() -> Iterator[Finding]:
    try:
        import docker as sdk
    except ImportError:
        yield Finding("docker sdk", "missing", "not installed", "pip install 'agentgym-lab[docker]'")
        return
    yield Finding("docker sdk", "ok", sdk.__version__)
    reason = docker.available()
    if reason:
        yield Finding("docker daemon", "missing", reason, _start(reason))
        return
    with docker.client() as api:
        version, info = api.version()["Version"], api.info()
        there = {tag for row in api.images() for tag in row["RepoTags"] or ()}
    yield Finding("docker daemon", "ok", f"{version} at {os.environ.get('DOCKER_HOST') or 'the default socket'}")
    weak = [name for key, name in _LIMITS.items() if info.get(key) is False]
    if not any("seccomp" in option for option in info.get("SecurityOptions") or ()):
        weak.append("system calls")
    if weak:
        fix = "docker info  # and boot a kernel that can, see its warnings"
        yield Finding("docker limits", "warning", f"the daemon cannot limit {', '.join(weak)}", fix)
    else:
        yield Finding("docker limits", "ok", "memory, swap, processes, CPU time, system calls")
    for short, full in image.IMAGES.items():
        if full in there:
            yield Finding(f"docker {short}", "ok", full)
        else:
            yield Finding(f"docker {short}", "missing", f"no image {full}", f"{_BUILD} --image {short}")


def _start(reason: str) -> str:
    if shutil.which("dockerd") is None and "DOCKER_HOST" not in os.environ:
        return "apt-get install docker.io"
    if "ermission denied" in reason:
        return 'sudo usermod -aG docker "$USER"  # and log in again'
    return "sudo systemctl start docker" if Path("/run/systemd/system").is_dir() else "sudo dockerd &"


def bubblewrap() -> Finding:
    """Whether bubblewrap can be used."""
    reason = local.available()
    if not reason:
        return Finding("bubblewrap", "ok", str(shutil.which("bwrap")))
    if shutil.which("bwrap") is None:
        return Finding("bubblewrap", "missing", "not installed; only for sandboxes", "apt-get install bubblewrap")
    return Finding("bubblewrap", "missing", f"{reason}; only for sandboxes", _allow_namespaces())


def _allow_namespaces() -> str:
    for name, wanted in (
        ("kernel.unprivileged_userns_clone", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "0"),
        ("user.max_user_namespaces", "10000"),
    ):
        file = Path("/proc/sys", *name.split("."))
        if file.is_file():
            value = file.read_text().strip()
            if value != wanted and (value == "0" or wanted == "0"):
                return f"sudo sysctl -w {name}={wanted}"
    return "run it where namespaces are allowed: docker run --security-opt seccomp=unconfined, or as root"


def _bubblewrap_parts() -> Iterator[Finding]:
    for short in image.IMAGES:
        folder = image.rootfs_folder(short)
        if folder:
            yield Finding(f"folder {short}", "ok", str(folder))
        else:
            detail = "no root file system for bubblewrap: its boxes see this machine's programs and this Python"
            yield Finding(f"folder {short}", "missing", detail, f"{_BUILD} --image {short}")
    group = Cgroup.make(f"agentgym-doctor-{os.getpid()}", Limits())
    if group is None:
        detail = "may not be made: bubblewrap limits each process, not the box as a whole"
        yield Finding("control groups", "missing", detail, "run as root, or use docker")
    else:
        group.remove()
        yield Finding("control groups", "ok", "bubblewrap limits memory, processes and CPU time of a box as a whole")


def _offline() -> Iterator[Finding]:
    absent = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if absent:
        detail = f"no {' and no '.join(absent)}: the image can be built with a registry only"
        yield Finding("offline build", "missing", detail, "agentgym sandbox build")
    elif not debian.lists():
        yield Finding("offline build", "missing", "apt has no package lists", "sudo apt-get update")
    else:
        yield Finding("offline build", "ok", "apt-get, dpkg-deb and package lists")


def _choice() -> Finding:
    from agentgym.sandboxes import choose

    try:
        return Finding("auto", "ok", choose())
    except AgentGymError as error:
        return Finding("auto", "broken", str(error), "apt-get install bubblewrap")
