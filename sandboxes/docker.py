"""Boxes in Docker containers: hardened, without network, one attached stream each."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from agentgym.sandboxes import reaper
from agentgym.sandboxes.base import GUARANTEES, Limits, SandboxUnavailable
from agentgym.sandboxes.client import Box, Setup, worker_argv
from agentgym.sandboxes.link import MultiplexedLink

from agentgym.errors import missing

_USER = 65534
_ANSWER_S = 60
_RETURN_S = 15.0
"""Seconds that a daemon may take to come back before a box is given up."""
_WORKSPACE = "/workspace"
_ENVIRONMENT = {
    "HOME": _WORKSPACE,
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

_idle: list[tuple[dict[str, str], Any]] = []
"""Clients that no call is using, with their daemons: a client serves one thread at a time."""


def _forked() -> None:
    _idle.clear()


os.register_at_fork(after_in_child=_forked)


def _daemon() -> dict[str, str]:
    """Where the daemon is, as docker's own tools are told it."""
    names = ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")
    return {name: os.environ[name] for name in names if os.environ.get(name)}


@contextlib.contextmanager
def client(daemon: dict[str, str] | None = None) -> Iterator[Any]:
    """A client of a daemon, by default of the one that ``DOCKER_HOST`` names, or the machine's own.

    Raises:
        MissingDependency: The docker package is not installed.
        SandboxUnavailable: The daemon does not answer.
    """
    try:
        import docker
    except ImportError as error:
        raise missing("docker", "docker") from error
    daemon = _daemon() if daemon is None else daemon
    found = next((pair for pair in list(_idle) if pair[0] == daemon), None)
    api = None
    if found is not None:
        with contextlib.suppress(ValueError):  # another thread was faster
            _idle.remove(found)
            api = found[1]
    if api is None:
        try:
            settings = docker.utils.kwargs_from_env(environment=daemon)
            api = docker.APIClient(**settings, version="auto", timeout=_ANSWER_S)
        except docker.errors.DockerException as error:
            raise _unreachable(daemon, error) from error
    works = False
    try:
        yield api
        works = True
    except docker.errors.APIError:
        works = True
        raise
    except OSError as error:  # what the HTTP client raises
        raise _unreachable(daemon, error) from error
    finally:
        api.close()  # its connections, of which it would keep one for every URL; it makes new ones when it needs them
        if works:
            _idle.append((daemon, api))


def _unreachable(daemon: dict[str, str], error: Exception) -> SandboxUnavailable:
    where = daemon.get("DOCKER_HOST", "the default socket")
    return SandboxUnavailable(f"no docker daemon answers at {where} ({error}): start one, or set DOCKER_HOST")


def available(image: str | None = None) -> str:
    """Why this backend cannot be used here, "" if it can.

    Args:
        image: An image that is wanted, None to ask for the daemon alone.
    """
    from agentgym.errors import AgentGymError

    try:
        with client() as api:
            import docker

            try:
                if image is not None:
                    api.inspect_image(image)
                else:
                    api.ping()
            except docker.errors.ImageNotFound:
                return _no_image(image or "")
    except AgentGymError as error:
        return str(error)
    except Exception as error:
        return f"the docker daemon does not answer: {error}"
    return ""


def _no_image(image: str) -> str:
    return f"the image {image} is not there: agentgym sandbox build --offline (or without --offline, from a registry)"


def prune() -> list[str]:
    """Remove the containers that dead owners have left.

    Returns:
        Their names.
    """
    with client() as api:
        return reaper.prune_containers(api)


def host_config(api: Any, limits: Limits, runtime: str | None = None) -> dict[str, Any]:
    """What the container may do, in the daemon's words.

    It is not removed by the daemon when it ends: a daemon that comes back would then remove the living ones too.
    """
    from docker.types import LogConfig, Ulimit

    scratch = "rw,nosuid,nodev,mode=1777"
    memory = limits.memory_mb << 20
    config: dict[str, Any] = api.create_host_config(
        network_mode="none",
        read_only=True,
        tmpfs={
            _WORKSPACE: f"{scratch},exec,size={limits.workspace_mb}m,nr_inodes={limits.inodes}",
            "/tmp": f"{scratch},exec,size={limits.tmp_mb}m,nr_inodes={max(64, limits.inodes // 4)}",
            "/dev/shm": f"{scratch},noexec,size={limits.tmp_mb}m,nr_inodes={max(64, limits.inodes // 4)}",
        },
        mem_limit=memory,
        memswap_limit=memory,
        pids_limit=limits.pids + 1,
        nano_cpus=int(limits.cpus * 1e9),
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        ipc_mode="none",
        ulimits=[
            Ulimit(name="nofile", soft=limits.open_files, hard=limits.open_files),
            Ulimit(name="core", soft=0, hard=0),
        ],
        log_config=LogConfig(type="none"),
        runtime=runtime,
    )
    config["CgroupnsMode"] = "private"
    return config


def open_box(image: str, limits: Limits, preload: tuple[str, ...] = (), runtime: str | None = None) -> Box:
    """Open a box.

    Args:
        image: Image with python3 3.9 or newer.
        limits: What it may use.
        preload: Modules imported before the first call.
        runtime: The daemon's name of another OCI runtime, such as ``runsc`` (gVisor).

    Raises:
        SandboxUnavailable: No daemon, or no such image.
        SandboxError: The box did not come up.
    """
    import docker

    daemon = _daemon()
    with contextlib.ExitStack() as stack:
        stack.enter_context(reaper.watch)
        with client(daemon) as api:
            reaper.watch.docker(daemon)
            try:
                container = api.create_container(
                    image,
                    worker_argv(),
                    user=f"{_USER}:{_USER}",
                    working_dir=_WORKSPACE,
                    hostname="sandbox",
                    network_disabled=True,  # spares the hook that would set up a network of nothing
                    environment=_ENVIRONMENT,
                    labels={reaper.LABEL: reaper.owner()},
                    stdin_open=True,
                    stop_signal="SIGKILL",
                    host_config=host_config(api, limits, runtime),
                    entrypoint="",
                )["Id"]
            except docker.errors.ImageNotFound as error:
                raise SandboxUnavailable(_no_image(image)) from error
            except docker.errors.APIError as error:
                raise SandboxUnavailable(f"docker refuses the box: {error.explanation}") from error
            stack.callback(_remove, daemon, container)
            try:
                link = _attach(api, container)
                api.start(container)
            except docker.errors.APIError as error:
                raise SandboxUnavailable(f"docker cannot start the box: {error.explanation}") from error
        setup = Setup(
            workspace=_WORKSPACE,
            scratch=(_WORKSPACE, "/tmp", "/dev/shm"),
            rlimits=(("RLIMIT_CORE", 0),),
            oom_files=("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"),
            preload=preload,
        )
        done = stack.pop_all()
        return Box(
            "docker",
            frozenset(GUARANTEES),
            setup,
            limits,
            link,
            remove=done.close,
            relink=lambda: _again(daemon, container),
        )


def _attach(api: Any, container: str) -> MultiplexedLink:
    stream = api.attach_socket(container, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    return MultiplexedLink(getattr(stream, "_sock", stream), keep=stream)


def _again(daemon: dict[str, str], container: str) -> MultiplexedLink | None:
    """Attach to a container that may have outlived its daemon; None if it has not."""
    import docker

    deadline = time.monotonic() + _RETURN_S
    while True:
        try:
            with client(daemon) as api:
                if not api.inspect_container(container)["State"]["Running"]:
                    return None
                return _attach(api, container)
        except docker.errors.NotFound:
            return None
        except Exception:
            if time.monotonic() > deadline:
                raise
            threading.Event().wait(0.1)


def _remove(daemon: dict[str, str], container: str) -> None:
    """Remove a container and wait until it is gone; a daemon that is away leaves it to the next sweep."""
    import docker

    with contextlib.suppress(Exception), client(daemon) as api:
        for _ in range(100):
            try:
                api.remove_container(container, force=True, v=True)
            except docker.errors.NotFound:
                return
            except docker.errors.APIError:  # its removal is under way
                time.sleep(0.02)
