"""Sandboxes for tool calls: one protocol, several backends.

``open_sandbox()`` opens a box; `agentgym.sandboxes.pool.SandboxPool` keeps some warm;
`agentgym.sandboxes.testing` checks that a backend keeps its promises.
"""

from __future__ import annotations

import logging

from agentgym.sandboxes.base import Entry, Limits, Result, Sandbox, SandboxLost, SandboxUnavailable

from agentgym.errors import ConfigError, unknown

if __name__ != "agentgym.sandboxes":
    raise ImportError("import this package as agentgym.sandboxes, not as a top-level module")

__all__ = [
    "BACKENDS",
    "Entry",
    "Limits",
    "Result",
    "Sandbox",
    "SandboxLost",
    "SandboxUnavailable",
    "choose",
    "open_sandbox",
]

BACKENDS = ("auto", "docker", "bubblewrap", "unsafe-local")

_log = logging.getLogger(__name__)


def choose(backend: str = "auto", image: str = "base") -> str:
    """The backend that `open_sandbox` would take.

    ``auto`` is docker where a daemon answers and has the image, else bubblewrap, and never ``unsafe-local``.

    Raises:
        ConfigError: For a name that is none of `BACKENDS`.
        SandboxUnavailable: If there is neither docker nor bubblewrap.
    """
    from agentgym.sandboxes import docker, local
    from agentgym.sandboxes.image import full_name

    if backend not in BACKENDS:
        raise unknown("sandbox backend", backend, BACKENDS)
    if backend != "auto":
        return backend
    no_docker = docker.available(full_name(image))
    if not no_docker:
        return "docker"
    no_bubblewrap = local.available()
    if no_bubblewrap:
        raise SandboxUnavailable(
            f"nothing here can run code safely. Docker: {no_docker}. Bubblewrap: {no_bubblewrap}. "
            "The backend unsafe-local runs code without any protection"
        )
    _log.info("sandbox: bubblewrap, because %s", no_docker)
    return "bubblewrap"


def open_sandbox(
    backend: str = "auto",
    *,
    image: str = "base",
    limits: Limits | None = None,
    preload: tuple[str, ...] = (),
    runtime: str | None = None,
) -> Sandbox:
    """Open a box.

    Args:
        backend: One of `BACKENDS`.
        image: ``base`` (bash, coreutils, python3), ``data`` (numpy and scikit-learn too), or any docker image with
            python3 3.9 or newer. Bubblewrap takes the unpacked image if ``agentgym sandbox build`` has made it, else
            this machine's own programs and this Python with its packages.
        limits: What it may use; the defaults of `Limits`.
        preload: Modules imported before the first call, so that fresh interpreters have them at once.
        runtime: Docker's name of another OCI runtime, such as ``runsc`` for gVisor.

    Raises:
        ConfigError: For an unknown backend, or a runtime where the box would not be Docker's.
        SandboxUnavailable: If the backend cannot be used here; the message says how to mend that.
        SandboxError: If the box did not come up.
    """
    from agentgym.sandboxes import docker, local
    from agentgym.sandboxes.image import full_name, rootfs_folder

    limits = limits or Limits()
    chosen = choose(backend, image)
    if runtime is not None and chosen != "docker":
        raise ConfigError(f"runtime={runtime!r} is Docker's to start, and this box would be {chosen}: backend='docker'")
    if chosen == "docker":
        return docker.open_box(full_name(image), limits, preload, runtime)
    if chosen == "bubblewrap":
        return local.open_box(rootfs_folder(image), limits, preload)
    return local.open_unsafe_box(limits, preload)
