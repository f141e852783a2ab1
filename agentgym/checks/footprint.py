"""What an environment leaves behind in its process: memory, open files, threads, processes, temporary files."""

from __future__ import annotations

import gc
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from agentgym.checks.bench import Bench
from agentgym.checks.subject import steps

_RESETS, _BLOCKS, _SECONDS = 240, 3, 8.0
_MEMORY = 32 << 10
"""Bytes a reset that count as a leak, if every block of resets grows by as much."""
_SLOWLY = 2.0
"""Seconds that a process may take to end."""


def growth(bench: Bench) -> Iterator[str]:
    """Hundreds of resets of one instance need no more memory, files, threads or processes."""
    env, seeds = bench.make(), itertools.cycle(bench.seeds)

    def resets(count: int) -> None:
        for seed in itertools.islice(seeds, count):
            for _ in itertools.islice(steps(env, seed, bench.options, None), 3):
                pass

    started = time.perf_counter()
    resets(40)
    each = (time.perf_counter() - started) / 40
    size = max(20, min(_RESETS, int(_SECONDS / each)) // _BLOCKS)
    before, memory = _counts(), [_memory()]
    for _ in range(_BLOCKS):
        resets(size)
        memory.append(_memory())
    least = min(b - a for a, b in itertools.pairwise(memory))
    total = size * _BLOCKS
    if least > max(1 << 20, _MEMORY * size):
        yield f"{total} resets took {(memory[-1] - memory[0]) / 2**20:.1f} MiB that were not given back, ever more"
    for what, count in _counts().items():
        if count - before[what] > max(2, total // 20):
            yield f"{total} resets left {count - before[what]} {what}"


def close(bench: Bench) -> Iterator[str]:
    """``close`` may be called twice, and leaves no process, thread, open file or temporary file."""
    bench.release()
    _play_and_close(bench)  # what is only made once, by an import, is no leak
    before = _leftovers()
    yield from dict.fromkeys(message for _ in range(3) for message in _play_and_close(bench))
    deadline = time.monotonic() + _SLOWLY
    while (after := _leftovers()) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    for what, names in after.items():
        if left := sorted(names - before[what]):
            yield f"after close() of 3 instances there are {len(left)} more {what}: {', '.join(left)[:200]}"


def _play_and_close(bench: Bench) -> list[str]:
    env = bench.subject.make()
    for _ in itertools.islice(steps(env, bench.seeds[0], bench.hinted, None), 3):
        pass
    env.close()
    try:
        env.close()
    except Exception as error:
        return [f"a second close() raised {type(error).__name__}: {error}"]
    return []


def _memory() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _counts() -> dict[str, int]:
    return {what: len(names) for what, names in _leftovers().items()}


def _leftovers() -> dict[str, set[str]]:
    gc.collect()
    return {
        "threads": {f"{t.name} ({t.ident})" for t in threading.enumerate()},
        "processes": _descendants(),
        "open files": {name for link in Path("/proc/self/fd").iterdir() if (name := _target(link))},
        "temporary files": {str(path) for path in Path(tempfile.gettempdir()).rglob("*")},
    }


def _target(link: Path) -> str:
    """Number and name of an open file; empty for the folder that is being listed."""
    try:
        target = os.readlink(link)
    except OSError:
        return ""
    return "" if target.endswith("/fd") else f"{link.name}: {target}"


def _descendants() -> set[str]:
    """Every process below this one, with its name."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                head, _, rest = (entry / "stat").read_text().rpartition(")")
            except OSError:  # it has just ended
                continue
            parents[int(entry.name)] = int(rest.split()[1])
            names[int(entry.name)] = head.partition("(")[2]
    below: set[int] = set()
    found = {os.getpid()}
    while found:
        found = {child for child, parent in parents.items() if parent in found} - below
        below |= found
    return {f"{names[pid]} ({pid})" for pid in below}
