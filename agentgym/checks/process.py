"""The process in which checks run: asked for one check at a time over a pipe, replaced if one takes it down."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cloudpickle

from agentgym import errors
from agentgym.checks.subject import Subject

COMMAND = [sys.executable, "-m", "agentgym.checks.child"]


class Gone(Exception):
    """The process died or hung during a check."""


def environment(hash_seed: int, temporary: Path) -> dict[str, str]:
    """The environment variables of a process that runs checks."""
    path = os.pathsep.join(os.path.abspath(p) for p in sys.path)
    return {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": str(hash_seed), "TMPDIR": str(temporary)}


class Process:
    """Runs checks elsewhere."""

    def __init__(self, subject: Subject):
        """Write down what is checked; the process starts with the first request."""
        self.folder = Path(tempfile.mkdtemp(prefix="agentgym-check-"))
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self.log = self.folder / "log"
        (self.folder / "subject").write_bytes(cloudpickle.dumps(subject))
        self.child: subprocess.Popen[bytes] | None = None

    def make(self, timeout: float) -> None:
        """Make and close the environment once.

        Raises:
            AgentGymError: If it cannot be made; of the type that making it here would have raised.
        """
        try:
            answer = self._ask("make", timeout)
        except Gone as gone:
            raise errors.EnvError(f"the environment cannot be made: {gone}") from gone
        if answer:
            raise getattr(errors, answer["kind"], errors.EnvError)(answer["error"])

    def check(self, name: str, timeout: float) -> list[str]:
        """Run a check and return its messages.

        Raises:
            Gone: If the process did not live through it.
        """
        messages: list[str] = self._ask(name, timeout)
        return messages

    def _ask(self, request: str, timeout: float) -> Any:
        if self.child is None:
            with open(self.log, "wb") as log:
                self.child = subprocess.Popen(
                    [*COMMAND, str(self.folder)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment(1, self.temporary),
                    start_new_session=True,
                )
        child, answer, deadline = self.child, b"", time.monotonic() + timeout
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended between two checks: the read below finds out
            child.stdin.write(request.encode() + b"\n")
            child.stdin.flush()
        while not answer.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([child.stdout], [], [], left)[0]:
                self._end()
                raise Gone(f"it did not come to an end within {timeout:g} s")
            if not (part := os.read(child.stdout.fileno(), 1 << 16)):
                code = child.wait()
                self._end()
                raise Gone(f"it took the process down ({self._reason(code)})")
            answer += part
        return json.loads(answer)

    def _reason(self, code: int) -> str:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        lines = self.log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{how}: {last[:200]}" if last else how

    def _end(self) -> None:
        """Kill the process and all it has started."""
        child, self.child = self.child, None
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()

    def close(self) -> None:
        """End the process and remove what was written for it."""
        self._end()
        shutil.rmtree(self.folder, ignore_errors=True)
