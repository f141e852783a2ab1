"""Limits for all processes of a box together, where control groups may be made."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from agentgym.sandboxes.base import Limits
from agentgym.sandboxes.reaper import CGROUPS

_PERIOD = 100_000


class Cgroup:
    """The control groups of one box: one folder (version 2) or one a controller (version 1).

    Attributes:
        oom_file: Where the kernel counts the processes that it killed for want of memory.
    """

    def __init__(self, folders: list[Path], oom_file: str):
        """Take over folders that are there."""
        self._folders, self.oom_file = folders, oom_file

    @classmethod
    def make(cls, name: str, limits: Limits) -> Cgroup | None:
        """Make the groups, or None where that is not allowed."""
        quota = int(limits.cpus * _PERIOD)
        memory = limits.memory_mb << 20
        root = Path(CGROUPS)
        one = {
            "memory": {
                "memory.limit_in_bytes": memory,
                "memory.memsw.limit_in_bytes": memory,
                "memory.swappiness": 0,
            },
            "pids": {"pids.max": limits.pids + 1},
            "cpu": {"cpu.cfs_period_us": _PERIOD, "cpu.cfs_quota_us": quota},
        }
        two = {
            "": {
                "memory.max": memory,
                "memory.swap.max": 0,
                "pids.max": limits.pids + 1,
                "cpu.max": f"{quota} {_PERIOD}",
            }
        }
        is_two = (root / "cgroup.controllers").is_file()
        folders: list[Path] = []
        try:
            for controller, settings in (two if is_two else one).items():
                folder = root / controller / name
                folder.mkdir()
                folders.append(folder)
                for file, value in settings.items():
                    try:
                        (folder / file).write_text(str(value))
                    except OSError:
                        if "swap" not in file and "memsw" not in file:  # a kernel that does not count swap
                            raise
            oom_file = folders[0] / ("memory.events" if is_two else "memory.oom_control")
            return cls(folders, str(oom_file))
        except OSError:
            cls(folders, "").remove()
            return None

    def add(self, *pids: int) -> None:
        """Put processes into it."""
        for folder in self._folders:
            for pid in pids:
                (folder / "cgroup.procs").write_text(str(pid))

    def kill(self) -> None:
        """Kill every process in it."""
        with contextlib.suppress(OSError):
            for pid in map(int, (self._folders[0] / "cgroup.procs").read_text().split()):
                os.kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        """Remove the groups, once their processes are gone."""
        for folder in self._folders:
            for _ in range(200):
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.01)
