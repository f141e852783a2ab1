"""The sandbox protocol: what a box can do, what a call gives back, and what may go wrong.

What the agent's code does wrong is a `Result`. What goes wrong with the box itself is a
`agentgym.errors.SandboxError`, so that no failure of ours is ever taken for the agent's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol

from agentgym.errors import ConfigError, SandboxError

ResultStatus = Literal["ok", "timeout", "output_limit", "memory_limit", "died", "cancelled"]


class SandboxLost(SandboxError):
    """The box is gone or cannot be trusted any more; open another one."""


class SandboxUnavailable(SandboxError):
    """A backend cannot be used on this machine; the message says how to mend that."""


@dataclass(frozen=True)
class Limits:
    """What a box may use.

    Attributes:
        memory_mb: Memory of all its processes and all its files together, MiB.
        cpus: CPU time a second of wall time.
        pids: Processes and threads.
        open_files: Open files of one process.
        workspace_mb: Size of the workspace, MiB; 0 for half of the memory, but at most 256.
        tmp_mb: Size of ``/tmp``, and of ``/dev/shm``, MiB; 0 for an eighth of the memory, but at most 64.
        inodes: Files and folders in the workspace; ``/tmp`` and ``/dev/shm`` may hold a quarter each.
        flood_mb: Output of one call, MiB, after which it is ended; how much is kept is ``max_output`` of the call.
    """

    memory_mb: int = 512
    cpus: float = 1.0
    pids: int = 128
    open_files: int = 1024
    workspace_mb: int = 0
    tmp_mb: int = 0
    inodes: int = 65536
    flood_mb: int = 64

    def __post_init__(self) -> None:
        for f in fields(self):
            value, least = getattr(self, f.name), _LEAST[f.name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 1 << 31:
                raise ConfigError(f"sandbox limit {f.name} is {value!r}: it must be a number and at least {least}")
            if f.name != "cpus" and not isinstance(value, int):
                raise ConfigError(f"sandbox limit {f.name} is {value!r}: it must be a whole number")
        for name, default in (
            ("workspace_mb", min(256, self.memory_mb // 2)),
            ("tmp_mb", min(64, self.memory_mb // 8)),
        ):
            object.__setattr__(self, name, getattr(self, name) or default)
        files = self.workspace_mb + 2 * self.tmp_mb
        if files > self.memory_mb * 3 // 4:
            raise ConfigError(
                f"sandbox limits: workspace_mb + 2 tmp_mb is {files}, but files lie in memory, and may take three "
                f"quarters of it: raise memory_mb to {-(-files * 4 // 3)}"
            )


_LEAST = {
    "memory_mb": 64,
    "cpus": 0.01,
    "pids": 8,
    "open_files": 256,
    "workspace_mb": 0,
    "tmp_mb": 0,
    "inodes": 64,
    "flood_mb": 1,
}


@dataclass(frozen=True)
class Result:
    """What came of a call.

    Attributes:
        status: ``ok``: it ran to its end, whatever its exit code. ``timeout``, ``output_limit``, ``memory_limit``: it
            was ended for that reason. ``died``: the interpreter session ended in mid-call. ``cancelled``: by `cancel`.
        exit_code: Exit code, minus the signal's number if a signal ended it; None if the call was ended.
        stdout: Standard output, the middle cut out if it was longer than ``max_output`` bytes.
        stderr: Standard error, likewise.
        duration: Seconds inside the box.
        output_bytes: Bytes that were written to both, before anything was cut.
        session_lost: Whether the interpreter session ended, with all it had in memory.
    """

    status: ResultStatus
    exit_code: int | None
    stdout: str
    stderr: str
    duration: float
    output_bytes: int = 0
    session_lost: bool = False

    @property
    def ok(self) -> bool:
        """Whether it ran to its end and its exit code is 0."""
        return self.status == "ok" and self.exit_code == 0


@dataclass(frozen=True)
class Entry:
    """A line of `Sandbox.list`: name, kind, and size in bytes."""

    name: str
    kind: Literal["file", "folder", "link", "other"]
    size: int


class Sandbox(Protocol):
    """A box. Calls from several threads are made one after the other; `cancel` and `close` may come at any time.

    Relative paths start at the workspace, which is also the working directory and ``$HOME``. A process lives no longer
    than the call that started it, except children of the interpreter session: they live as long as the session at most.

    Every method raises `SandboxError` if the box fails.

    Attributes:
        backend: Name of the backend.
        guarantees: What it promises, by the names in `GUARANTEES`.
        workspace: Absolute path of the workspace inside the box.
        limits: What it may use.
    """

    backend: str
    guarantees: frozenset[str]
    workspace: str
    limits: Limits

    @property
    def alive(self) -> bool:
        """Whether the box can be used, as far as is known without asking it."""
        ...

    def exec(
        self,
        command: str | Sequence[str],
        *,
        stdin: str | bytes = b"",
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        timeout: float = 30.0,
        max_output: int = 65536,
    ) -> Result:
        """Run a program: a sequence is its arguments, a string goes to ``bash -c``."""
        ...

    def python(self, code: str, *, fresh: bool = False, timeout: float = 30.0, max_output: int = 65536) -> Result:
        """Run Python code and show the value of its last expression, as an interpreter does.

        Args:
            code: The code.
            fresh: Run it in a new interpreter that nothing has touched and that imports nothing from the workspace,
                instead of the box's session, which keeps its variables from call to call.
            timeout: Seconds; a session is interrupted first and lost only if that does not end the call.
            max_output: Bytes kept of each stream. A session has one stream: its standard error is in ``stdout``.
        """
        ...

    def put(self, path: str, data: str | bytes, mode: int = 0o644) -> None:
        """Write a file, making its folders.

        Raises:
            OSError: What writing it gave: no space, is a folder, not allowed.
        """
        ...

    def get(self, path: str, max_bytes: int = 16 << 20) -> bytes:
        """Read a regular file; links are not followed.

        Raises:
            OSError: What reading it gave, or that it is a link, no regular file, or longer than ``max_bytes``.
        """
        ...

    def list(self, path: str = ".") -> list[Entry]:
        """List a folder, sorted by name; at most 10,000 entries.

        Raises:
            OSError: What listing it gave.
        """
        ...

    def stop(self) -> None:
        """End every process in the box, the interpreter session included; files stay."""
        ...

    def reset(self) -> None:
        """Bring the box back to how it was opened: no processes, no files.

        Raises:
            SandboxLost: If it cannot be made clean; it is closed then.
        """
        ...

    def ping(self) -> None:
        """Raise `SandboxLost` unless the box answers."""
        ...

    def cancel(self) -> None:
        """End the call that is running, if there is one; it returns with status ``cancelled``. From any thread."""
        ...

    def close(self) -> None:
        """Remove the box. From any thread, any number of times; a running call raises `SandboxLost`."""
        ...

    def __enter__(self) -> Sandbox: ...

    def __exit__(self, *exc: object) -> None: ...


GUARANTEES = {
    "kill-tree": "nothing survives the call that started it, the interpreter session apart",
    "no-network": "no network, not even the machine's own loopback",
    "no-host-files": "no file of the machine can be written, and none outside the system's folders can be read",
    "no-privileges": "no capabilities, no set-user-id programs, kernel interfaces cut down by seccomp",
    "disk": "files are limited in size and number",
    "memory": "memory is limited for all processes together",
    "pids": "the number of processes is limited",
    "cpu": "CPU time is limited",
}
