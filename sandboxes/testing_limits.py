"""Checks of what a sandbox limits."""

from __future__ import annotations

from agentgym.sandboxes.base import Sandbox
from agentgym.sandboxes.testing_base import check, fresh, raises, same

_MEMORY_HOG = "data = []\nwhile True: data.append(bytearray(16 << 20))"


@check(needs="memory")
def memory_of_one(box: Sandbox) -> None:
    """One process that takes all memory is killed, in a call of its own and in the session."""
    same(fresh(box, _MEMORY_HOG).status, "memory_limit")
    result = box.python(_MEMORY_HOG)
    same((result.status, result.session_lost), ("memory_limit", True))


@check(needs="memory")
def memory_of_many(box: Sandbox) -> None:
    """Many processes together take no more than one."""
    share = (box.limits.memory_mb << 20) // 10
    code = f"""
import os, time
for _ in range(20):
    if not os.fork():
        data = bytearray({share})
        time.sleep(3)
        os._exit(0)
time.sleep(4)
"""
    same(fresh(box, code).status, "memory_limit")


@check(needs="pids")
def fork_bombs(box: Sandbox) -> None:
    """Processes, detached processes and threads without end."""
    box.exec("bomb() { bomb | bomb & }; bomb; sleep 1", timeout=2)
    fresh(box, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", timeout=1)
    detached = """
import os
while True:
    try:
        if os.fork() == 0: os.setsid()
    except OSError: pass
"""
    fresh(box, detached, timeout=1)
    code = """
import threading, time
try:
    for n in range(5000): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
except RuntimeError: print('stopped at', n)
"""
    result = fresh(box, code)
    assert "stopped at" in result.stdout, result
    box.python("x = 1")
    box.python(detached, timeout=1)


@check(needs="cpu")
def cpu_time(box: Sandbox) -> None:
    """Three busy processes take no more than the box may have."""
    code = (
        "import os, time\nfor _ in range(2):\n    if not os.fork(): break\nend = time.time() + 2\n"
        "while time.time() < end: pass\nprint(time.process_time(), flush=True)\ntime.sleep(0.5)"
    )
    used = sum(map(float, fresh(box, code).stdout.split()))
    assert used < 2 * box.limits.cpus * 1.3 + 0.2, f"{used:.2f} s of CPU time in 2 s"


@check(needs="disk")
def full_disk(box: Sandbox) -> None:
    """Every folder that can be written is limited; the box works on when one is full."""
    for folder in (box.workspace, "/tmp", "/dev/shm"):
        code = f"""
n = 0
try:
    with open('{folder}/big', 'wb') as file:
        while True: n += file.write(bytes(1 << 20))
except OSError as error: print(error.errno, n >> 20)
"""
        result = fresh(box, code, timeout=60)
        assert result.stdout.startswith("28 "), f"{folder}: {result}"
        assert int(result.stdout.split()[1]) <= max(box.limits.workspace_mb, box.limits.tmp_mb), result
    assert raises(OSError, lambda: box.put("more", bytes(1 << 20))), "a file was written to a full disk"
    same(box.python("1 + 1").stdout, "2\n")


@check(needs="disk")
def inodes(box: Sandbox) -> None:
    """Empty files without end."""
    for folder in (box.workspace, "/tmp", "/dev/shm"):
        code = f"""
n = 0
try:
    while True:
        open(f'{folder}/f{{n}}', 'w').close()
        n += 1
except OSError as error: print(error.errno, n)
"""
        result = fresh(box, code, timeout=60)
        assert result.stdout.startswith("28 "), f"{folder}: {result}"
        assert int(result.stdout.split()[1]) <= box.limits.inodes, result


@check()
def endless_output(box: Sandbox) -> None:
    """A flood is cut off soon, and costs the owner no memory."""
    for action in (
        lambda: box.exec("yes"),
        lambda: box.exec("yes >&2"),
        lambda: box.python("while True: print('y' * 1000)"),
    ):
        result = action()
        same(result.status, "output_limit")
        assert len(result.stdout) + len(result.stderr) < 70_000, "more than max_output came back"


@check()
def open_files(box: Sandbox) -> None:
    """The number of open files is limited."""
    code = "files = []\ntry:\n    while True: files.append(open('/dev/null'))\nexcept OSError: print(len(files))"
    assert int(fresh(box, code).stdout) <= box.limits.open_files
