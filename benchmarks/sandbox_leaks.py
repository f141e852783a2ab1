"""What boxes leave behind: nothing, after 500 cancelled calls and after 20 clients that were killed.

Counts containers, processes, mounts, cgroup folders, temporary files, and this process's open files and threads before
and after, on the daemon of ``DOCKER_HOST`` and under bubblewrap. A client that is killed (SIGKILL) has three boxes: one
idle, one in the middle of a call, and one that is being opened or closed.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from agentgym.sandboxes import open_sandbox
from agentgym.sandboxes.base import Result

PATIENCE_S = 60.0
OURS = ("containers", "processes", "cgroup folders", "temporary files")
"""What there is none of while no box is open."""

CLIENT = """
import sys, threading
from agentgym.sandboxes import open_sandbox
idle, busy = (open_sandbox(sys.argv[1]) for _ in range(2))
threading.Thread(target=lambda: busy.exec("while :; do :; done", timeout=600), daemon=True).start()
print("ready", flush=True)
while True:
    open_sandbox(sys.argv[1]).close()
"""


def census(folder: Path, started: float) -> dict[str, int]:
    """All that our boxes could leave behind, and nothing of what others do on this machine meanwhile.

    Args:
        folder: Temporary folder of this process, of its clients and of what they start.
        started: When the first box was opened, seconds since the epoch.
    """
    containers = _docker("ps", "-aq")
    made = _docker("events", "--since", f"{started:.0f}", "--until", f"{time.time():.0f}", "--filter", "event=create",
                   "--format", "{{.ID}}")  # fmt: skip
    daemon = str(Path(os.environ["DOCKER_HOST"].removeprefix("unix://")).parent).encode()
    processes = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            shim = (
                b"containerd-shim" in (process / "cmdline").read_bytes()
                and daemon in (process / "cmdline").read_bytes()
            )
            processes += shim or str(folder).encode() in (process / "environ").read_bytes()
    groups = (name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names)
    return {
        "containers": len(containers),
        "processes": processes,
        "mounts": sum(daemon in line for line in Path("/proc/mounts").read_bytes().splitlines()),
        "cgroup folders": sum(name in made or name.startswith("agentgym-") for name in groups),
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "temporary files": len(list(folder.rglob("*"))),
    }


def _docker(*arguments: str) -> set[str]:
    run = subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True)
    return set(run.stdout.split())


def cancel_calls(backend: str, count: int) -> None:
    """Cancel calls at moments all over their course; the box must go on."""
    with open_sandbox(backend) as box:
        box.python("x = 41")
        calls = (
            lambda: box.exec("sleep 60 & sleep 60"),
            lambda: box.python("while True: pass", fresh=True),
            lambda: box.python("import time; time.sleep(60)"),
            lambda: box.exec("yes"),
        )
        kinds: dict[str, int] = {}
        for number in range(count):
            results: list[Result] = []
            call = threading.Thread(target=lambda k=number, out=results: out.append(calls[k % len(calls)]()))
            call.start()
            deadline = time.monotonic() + 30
            time.sleep(0.0005 * (number % 20))
            while call.is_alive() and time.monotonic() < deadline:
                box.cancel()
                call.join(0.01)
            if call.is_alive() or not results:
                raise SystemExit(f"{backend}: call {number} did not end when it was cancelled")
            kinds[results[0].status] = kinds.get(results[0].status, 0) + 1
        if not box.python("1 + 1").stdout.strip() == "2":
            raise SystemExit(f"{backend}: the box is not what it was after {count} cancelled calls")
        print(f"{backend}: {count} cancelled calls: {kinds}")


def kill_clients(backend: str, count: int) -> None:
    """Kill clients while they hold boxes."""
    for number in range(count):
        client = subprocess.Popen([sys.executable, "-c", CLIENT, backend], stdout=subprocess.PIPE)
        assert client.stdout
        if client.stdout.readline().strip() != b"ready":
            raise SystemExit(f"{backend}: a client did not start")
        time.sleep(0.037 * number)
        client.send_signal(signal.SIGKILL)
        client.wait()
        client.stdout.close()
    print(f"{backend}: {count} clients killed")


def settled(before: dict[str, int], count: Callable[[], dict[str, int]]) -> tuple[dict[str, int], float]:
    """The census once nothing is left of what was not there before, and how long that took."""
    start = time.monotonic()
    while True:
        now = count()
        if all(now[name] <= before[name] for name in before) or time.monotonic() - start > PATIENCE_S:
            return now, time.monotonic() - start
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--backends", nargs="*", default=["docker", "bubblewrap"])
    args = parser.parse_args()
    leaks = []
    folder = Path(tempfile.mkdtemp(prefix="agentgym-leaks-"))
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    started = time.time()

    def count_all() -> dict[str, int]:
        return census(folder, started)

    for backend in args.backends:
        for what, count in ((cancel_calls, args.calls), (kill_clients, args.clients)):
            what(backend, 1)  # what is made once and kept, such as a connection
            before, _ = settled({**count_all(), **dict.fromkeys(OURS, 0)}, count_all)
            what(backend, count)
            after, seconds = settled(before, count_all)
            for name, number in before.items():
                print(f"  {name:16s} before {number:5d}, after {after[name]:5d}")
                if after[name] > number:
                    leaks.append(f"{backend}, {what.__name__}: {after[name] - number} {name}")
            print(f"  settled after {seconds:.1f} s; load {os.getloadavg()[0]:.1f}", flush=True)
    shutil.rmtree(folder)
    if leaks:
        raise SystemExit("left behind: " + "; ".join(leaks))
    print("nothing is left behind")


if __name__ == "__main__":
    main()
