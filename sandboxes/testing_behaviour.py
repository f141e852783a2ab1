"""Checks of what every sandbox does."""

from __future__ import annotations

import functools
import os
import threading
import time

from agentgym.sandboxes.base import Sandbox, SandboxLost
from agentgym.sandboxes.testing_base import check, fresh, raises, same

from agentgym.errors import ConfigError


@check()
def programs(box: Sandbox) -> None:
    """Arguments and shell commands, exit codes, both streams, programs that are not there."""
    result = box.exec(["echo", "a b", "$HOME", "ü"])
    same((result.stdout, result.stderr, result.exit_code, result.status), ("a b $HOME ü\n", "", 0, "ok"))
    result = box.exec("echo out; echo err >&2; exit 3")
    same((result.stdout, result.stderr, result.exit_code, result.ok), ("out\n", "err\n", 3, False))
    same(box.exec("kill -9 $$").exit_code, -9)
    same(box.exec(["no-such-program"]).exit_code, 127)
    same(box.exec(["/"]).exit_code, 126)
    raises(ConfigError, lambda: box.exec([]))
    raises(ConfigError, lambda: box.exec("true", timeout=0))


@check()
def surroundings(box: Sandbox) -> None:
    """Standard input, working directory, variables, which end with the call."""
    same(box.exec(["cat"], stdin="héllo").stdout, "héllo")
    same(box.exec(["wc", "-c"], stdin=bytes(3_000_000)).stdout.strip(), "3000000")
    same(box.exec(["cat"]).stdout, "")
    same(box.exec("pwd").stdout.strip(), box.workspace)
    same(box.exec("pwd", cwd="/").stdout, "/\n")
    assert not box.exec("pwd", cwd="/no/such/folder").ok
    same(box.exec("echo $COLOUR", env={"COLOUR": "red"}).stdout, "red\n")
    same(box.exec("echo $COLOUR").stdout, "\n")
    same(box.exec("echo $HOME").stdout.strip(), box.workspace)


@check()
def any_bytes(box: Sandbox) -> None:
    """Output that is no text, and text with halves of characters, do no harm."""
    assert "�" in box.exec("printf '\\377\\376\\0abc'").stdout
    same(box.python("print(len('\ud800'))").exit_code, 0)
    same(box.exec(["printf", "%s", "\ud800"]).exit_code, 0)


@check()
def cut_output(box: Sandbox) -> None:
    """Long output keeps its beginning and its end and says how much is missing."""
    result = box.exec("seq 1 100000", max_output=1000)
    same((result.status, result.exit_code, result.output_bytes), ("ok", 0, 588895))
    assert len(result.stdout) < 1100, len(result.stdout)
    assert result.stdout.startswith("1\n2\n"), result.stdout[:20]
    assert result.stdout.endswith("99999\n100000\n"), result.stdout[-20:]
    assert "587895 bytes cut" in result.stdout, result.stdout


@check()
def session(box: Sandbox) -> None:
    """The session keeps its variables, shows the last value, and outlives errors and exits of its code."""
    same(box.python("x = 41\nx + 1").stdout, "42\n")
    same(box.python("x").stdout, "41\n")
    result = box.python("1 / 0")
    same((result.exit_code, result.status, result.session_lost), (1, "ok", False))
    assert result.stdout.endswith("ZeroDivisionError: division by zero\n"), result
    assert "agentgym" not in result.stdout, f"the traceback shows our own files: {result.stdout}"
    same(box.python("import sys; sys.exit(7)").exit_code, 7)
    assert "SyntaxError" in box.python("def (").stdout
    same(box.python("print(x, end='')").stdout, "41")
    box.put("helper.py", "value = 5\n")
    same(box.python("import helper; helper.value").stdout, "5\n")
    same(box.python("class A: pass\nimport pickle; pickle.loads(pickle.dumps(A())).__class__ is A").stdout, "True\n")


@check()
def session_beside_calls(box: Sandbox) -> None:
    """Other calls leave the session and its children alone."""
    box.python("import subprocess; child = subprocess.Popen(['sleep', '100']); x = 1")
    same(box.exec("echo hi").stdout, "hi\n")
    same(fresh(box, "print('hi')").stdout, "hi\n")
    same(box.python("x, child.poll()").stdout, "(1, None)\n")


@check()
def session_that_ends(box: Sandbox) -> None:
    """A session that kills itself is a result, and the next call gets a new one."""
    box.python("x = 1")
    result = box.python("import os; print('bye', flush=True); os._exit(3)")
    same((result.status, result.exit_code, result.stdout, result.session_lost), ("died", None, "bye\n", True))
    same(box.python("'x' in globals()").stdout, "False\n")


@check()
def fresh_interpreter(box: Sandbox) -> None:
    """A fresh call sees nothing of the session, of the workspace's modules, or of calls before it."""
    box.python("import json, builtins; json.dumps = lambda *a: 'forged'; builtins.len = lambda a: 7; x = 1")
    for name in ("json", "csv", "sitecustomize", "usercustomize", "statistics", "numbers"):
        box.put(f"{name}.py", "print('from the workspace')\n")
    code = "import json, statistics, numbers, csv\nprint('x' in globals(), json.dumps([1]), len('abc'))"
    same(fresh(box, code).stdout, "False [1] 3\n")
    same(fresh(box, "leak = 1").stdout, "")
    same(fresh(box, "'leak' in globals()").stdout, "False\n")


@check()
def files(box: Sandbox) -> None:
    """Files go in and out as they are; folders are made and listed."""
    data = os.urandom(1 << 20)
    box.put("deep/er/data.bin", data)
    assert box.get("deep/er/data.bin") == data, "the bytes that came back differ"
    box.put("deep/er/data.bin", "short")
    same(box.get(f"{box.workspace}/deep/er/data.bin"), b"short")
    box.put("run.sh", "#!/bin/sh\necho ran\n", mode=0o755)
    same(box.exec(["./run.sh"]).stdout, "ran\n")
    box.exec("ln -s run.sh link; touch 'new\nline'")
    rows = {(entry.name, entry.kind) for entry in box.list()}
    same(rows, {("deep", "folder"), ("run.sh", "file"), ("link", "link"), ("new\nline", "file")})
    same([entry.size for entry in box.list("deep/er")], [5])


@check()
def files_that_are_none(box: Sandbox) -> None:
    """Links, pipes, folders, devices and what is too long are refused, and nothing hangs."""
    box.exec("ln -s /etc/passwd link; mkfifo pipe; mkdir folder; ln -s . loop")
    for name in ("link", "pipe", "folder", "/dev/zero", "/proc/self/environ", "/proc/1/environ", "/proc/1/mem", "none"):
        raises(OSError, functools.partial(box.get, name))
    for name in ("link", "pipe", "folder", "/dev/null", "/proc/self/oom_score_adj"):
        raises(OSError, functools.partial(box.put, name, "x"))
    box.put("long", bytes(1001))
    raises(OSError, lambda: box.get("long", max_bytes=1000))
    same(len(box.get("long", max_bytes=1001)), 1001)
    raises(FileNotFoundError, lambda: box.list("none"))
    raises(ConfigError, lambda: box.get("a\0b"))


@check()
def deadlines(box: Sandbox) -> None:
    """A call ends at its deadline, whatever it does against that; what it wrote until then is kept."""
    for action in (
        lambda: box.exec("echo begun; trap '' TERM INT HUP; while :; do sleep 10; done", timeout=0.5),
        lambda: fresh(box, "print('begun', flush=True)\nwhile True: pass", timeout=0.5),
        lambda: box.python("print('begun', flush=True)\nwhile True: pass", timeout=0.5),
    ):
        started = time.monotonic()
        result = action()
        same((result.status, result.exit_code), ("timeout", None))
        assert result.stdout.startswith("begun\n"), result
        assert time.monotonic() - started < 3, f"it took {time.monotonic() - started:.1f} s"


@check()
def interrupted_session(box: Sandbox) -> None:
    """The session survives a deadline if it obeys the interrupt, and is replaced if it does not."""
    box.python("x = 1")
    result = box.python("import time; time.sleep(60)", timeout=0.3)
    same((result.status, result.session_lost), ("timeout", False))
    same(box.python("x").stdout, "1\n")
    stubborn = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    result = box.python(stubborn, timeout=0.3)
    same((result.status, result.session_lost), ("timeout", True))
    same(box.python("'x' in globals()").stdout, "False\n")


@check()
def cancelling(box: Sandbox) -> None:
    """Another thread ends a call; the box goes on. Cancelling nothing does nothing."""
    box.cancel()
    for action in (lambda: box.exec("sleep 60"), lambda: box.python("import time; time.sleep(60)")):
        timer = threading.Timer(0.3, box.cancel)
        timer.start()
        started = time.monotonic()
        result = action()
        same(result.status, "cancelled")
        assert time.monotonic() - started < 5, "it ran on"
    same(box.exec("echo hi").stdout, "hi\n")


@check()
def threads_take_turns(box: Sandbox) -> None:
    """Calls of several threads do not mix."""
    seen: dict[int, str] = {}

    def call(number: int) -> None:
        seen[number] = "".join(box.exec(["echo", f"{number}.{i}"]).stdout for i in range(5))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    same(seen, {n: "".join(f"{n}.{i}\n" for i in range(5)) for n in range(8)})


@check(spends=True)
def closing(box: Sandbox) -> None:
    """Closing ends a call in another thread; a closed box says so; closing twice is nothing."""
    errors: list[BaseException] = []

    def call() -> None:
        try:
            box.exec("sleep 60", timeout=120)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.3)
    box.close()
    box.close()
    thread.join(10)
    assert not thread.is_alive(), "the call goes on"
    assert [type(e) for e in errors] == [SandboxLost], errors
    assert not box.alive
    raises(SandboxLost, lambda: box.exec("true"))
    raises(SandboxLost, lambda: box.get("x"))
