"""A Docker daemon for tests: private, in a folder of its own, gone when its owner is, however that ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "dockerd.sh"


class Daemon:
    """A private daemon. A process that waits on a pipe from this one stops it and removes its folder at the end.

    Attributes:
        folder: Its folder.
        host: The value of ``DOCKER_HOST``.
    """

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="agentgym-docker-"))
        self.host = f"unix://{self.folder}/docker.sock"
        self._guard = subprocess.Popen(
            ["sh", "-c", 'read _; "$0" stop "$1" && rm -rf "$1"', SCRIPT, self.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the tests alone
        )

    def start(self) -> None:
        """Start it, also after `kill`."""
        subprocess.run([SCRIPT, "start", self.folder], check=True, capture_output=True, text=True, timeout=60)

    @property
    def pid(self) -> int:
        """Its process."""
        return int((self.folder / "docker.pid").read_text())

    def kill(self) -> None:
        """Kill it as a crash would, and wait until its last thread is dead: its sockets close then."""
        process = Path(f"/proc/{self.pid}")
        os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            while len(os.listdir(process / "task")) > 1 or ") Z " not in (process / "stat").read_text():
                time.sleep(0.01)

    def close(self) -> None:
        """Remove its containers, end it and remove its folder."""
        _, said = self._guard.communicate(timeout=120)
        assert self._guard.returncode == 0, said.decode()
        assert not self.folder.exists()


def why_not() -> str:
    """Why no private daemon can be started, empty if one can."""
    absent = [program for program in ("dockerd", "docker") if shutil.which(program) is None]
    if absent:
        return f"no {' and no '.join(absent)}: apt-get install docker.io"
    return "" if os.geteuid() == 0 else "no Docker daemon answers, and only root can start one"
