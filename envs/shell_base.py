"""What the tasks of `agentgym.envs.shell` are made of: files, the expert's plan, and what is looked at in the end."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from agentgym.sandboxes.base import Sandbox
from agentgym.sandboxes.tool_env import Problem

from agentgym.tool_calls import Call

_WORDS = (
    "amber anchor apple arrow basil birch blaze brook cedar cherry clay clover coral cotton delta ember fable fern "
    "flint garnet ginger glacier hazel heron indigo ivory jasper juniper kelp lagoon lemon lichen maple marble "
    "meadow mint nectar oasis olive onyx opal orchid pebble pepper pine plum quartz raven reed river saffron sage "
    "slate sorrel spruce thistle topaz tulip umber velvet violet walnut willow zephyr"
)
WORDS = tuple(_WORDS.split())

_CHECK_S, _RUN_S = 20.0, 10.0
_MOST_FILES, _MOST_BYTES = 5000, 4 << 20

_LOOK = """
import base64, json, os, stat
nonce, left, room, rows = {nonce!r}, {files}, {room}, []
todo = list(reversed({roots!r}))
while todo and left:
    path = todo.pop()
    left -= 1
    try:
        found = os.lstat(path)
    except OSError:
        continue
    kind, data = "other", None
    if stat.S_ISDIR(found.st_mode):
        kind = "folder"
        try:
            todo += sorted((os.path.join(path, name) for name in os.listdir(path)), reverse=True)
        except OSError:
            pass
    elif stat.S_ISREG(found.st_mode):
        kind = "file"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(fd, "rb") as file:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    data = file.read(room + 1)
        except OSError:
            pass
        if data is not None:
            room -= len(data)
            data = None if room < 0 else base64.b64encode(data).decode()
            room = max(room, 0)
    rows.append((path, kind, stat.S_IMODE(found.st_mode), data))
print(nonce, json.dumps([rows, not todo]))
"""


@dataclass(frozen=True)
class File:
    """A file of a task."""

    data: bytes
    mode: int = 0o644


@dataclass(frozen=True)
class Found:
    """What lies at a path in the end: ``file``, ``folder`` or ``other``; data only of a file that can be read."""

    kind: str
    mode: int
    data: bytes | None


@dataclass(frozen=True)
class Run:
    """A program of the agent's that is tried on input it has not seen.

    Attributes:
        argv: Its arguments.
        output: What it must print, but for white space at the end of lines and of the whole.
        files: Files that are written before.
        stdin: Its standard input.
    """

    argv: tuple[str, ...]
    output: str
    files: Mapping[str, bytes]
    stdin: str = ""


Tree = Mapping[str, Found]
Judge = Callable[[Tree, str], bool]


@dataclass(frozen=True, kw_only=True)
class ShellTask(Problem):
    """A task in a workspace.

    Attributes:
        files: What the workspace holds at the start.
        look: Paths that are looked at when the agent has submitted, with all below them.
        judge: Whether what was found there, and the answer, are right.
        runs: What is run then.
    """

    files: Mapping[str, File]
    look: tuple[str, ...]
    judge: Judge
    runs: tuple[Run, ...] = ()


def is_done(box: Sandbox, task: ShellTask, answer: str) -> bool:
    """Whether a task is solved; everything that runs in the box is ended first.

    What is right never enters the box. A fresh interpreter, which nothing of the agent's has touched, says what lies in
    the workspace, with a nonce; it is compared here. Then the agent's programs run, each in a call of its own.

    Raises:
        SandboxError: If the box failed.
    """
    box.stop()
    tree = _look(box, task.look)
    if tree is None or not task.judge(tree, answer):
        return False
    for run in task.runs:
        try:
            for path, data in run.files.items():
                box.put(path, data)
        except OSError:  # the agent has left no room for it, or a folder in its place
            return False
        result = box.exec(run.argv, stdin=run.stdin, timeout=_RUN_S)
        if not result.ok or lines(result.stdout) != lines(run.output):
            return False
    return True


def is_trivial(task: ShellTask) -> bool:
    """Whether the workspace is right before anything was done."""
    tree = {path: Found("file", file.mode, file.data) for path, file in task.files.items()}
    return bool(task.look) and task.judge(tree, "done")


def _look(box: Sandbox, roots: Sequence[str]) -> Tree | None:
    """What lies under paths, or None if the agent has left more than can be looked at."""
    nonce = secrets.token_hex(16)
    code = _LOOK.format(nonce=nonce, files=_MOST_FILES, room=_MOST_BYTES, roots=list(roots))
    result = box.python(code, fresh=True, timeout=_CHECK_S, max_output=4 * _MOST_BYTES)
    said, _, rest = result.stdout.partition(" ")
    if not result.ok or said != nonce:
        return None
    rows, complete = json.loads(rest)
    if not complete:
        return None
    return {
        path: Found(kind, mode, None if data is None else base64.b64decode(data)) for path, kind, mode, data in rows
    }


def lines(text: str) -> list[str]:
    """Lines without white space at their ends, and without empty ones at the end."""
    return [line.rstrip() for line in text.rstrip().split("\n")]


def says(path: str, text: str) -> Judge:
    """A file holds this text, but for white space at the end of lines and of the whole."""

    def judge(tree: Tree, answer: str) -> bool:
        found = tree.get(path)
        if found is None or found.data is None:
            return False
        return lines(found.data.decode(errors="replace")) == lines(text)

    return judge


def holds(files: Mapping[str, bytes], root: str) -> Judge:
    """The files under a folder are these, with this content, and no other; empty folders do not matter."""

    def judge(tree: Tree, answer: str) -> bool:
        there = {path: f.data for path, f in tree.items() if f.kind != "folder" and path.startswith(f"{root}/")}
        return there == dict(files)

    return judge


def both(*judges: Judge) -> Judge:
    """All of them say yes."""
    return lambda tree, answer: all(judge(tree, answer) for judge in judges)


def plain(files: Mapping[str, str | bytes]) -> dict[str, File]:
    """Files with the usual mode."""
    return {path: File(data.encode() if isinstance(data, str) else data) for path, data in files.items()}


def contents(files: Mapping[str, File], root: str) -> dict[str, bytes]:
    """The contents of the files under a folder."""
    return {path: file.data for path, file in files.items() if path.startswith(f"{root}/")}


def bash(command: str) -> Call:
    """A call of the tool ``bash``."""
    return Call("bash", {"command": command})


def python(code: str) -> Call:
    """A call of the tool ``python``."""
    return Call("python", {"code": code})


class Dice:
    """Draws what tasks are made of."""

    def __init__(self, rng: np.random.Generator, level: int):
        """Draw from a generator, for a level of 1 to 3."""
        self.rng, self.level = rng, level

    def number(self, low: int, high: int) -> int:
        """A number from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, values: Sequence[str], count: int) -> list[str]:
        """Different values."""
        return [values[i] for i in self.rng.permutation(len(values))[:count].tolist()]

    def one(self, values: Sequence[str]) -> str:
        """One of them."""
        return values[self.number(0, len(values) - 1)]

    def chance(self, share: float) -> bool:
        """True in this share of the cases."""
        return bool(self.rng.random() < share)

    def names(self, count: int) -> list[str]:
        """Different names without a suffix; on level 3 with spaces, quotes and other traps."""
        found = self.pick(WORDS, count)
        if self.level < 3:
            return found
        odd = ("{0} {1}", "-{0}", "{0}'s", "{0} ({1})", "{0}é", "{0}")
        return [self.one(odd).format(name, self.number(1, 9)) for name in found]

    def folders(self, root: str) -> list[str]:
        """Folders under a root, itself among them; deeper with the level."""
        found = [root]
        for name in self.names(2 * self.level):
            parent = found[self.number(0, len(found) - 1)]
            found.append(f"{parent}/{name}")
        return found

    def sentence(self, count: int) -> str:
        """Words with spaces between them."""
        return " ".join(WORDS[i] for i in self.rng.integers(len(WORDS), size=count).tolist())
