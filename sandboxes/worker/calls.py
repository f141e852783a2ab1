"""Calls that run the agent's code: in a process of its own, or in the session."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import time
from typing import Any, NoReturn

from agentgym.sandboxes.worker import interpreter, processes
from agentgym.sandboxes.worker.frames import CHUNK, Output, receive, write_all
from agentgym.sandboxes.worker.lockdown import become_agent
from agentgym.sandboxes.worker.processes import end_all, fork, session

_INTERRUPT_S = 0.5
"""Seconds that the session has to obey an interrupt."""


class Calls:
    """What calls need to know.

    Attributes:
        source: Where frames come in.
        null: The null device.
        config: What the owner has said.
        waiting: Frames that came in mid-call.
    """

    def __init__(self, source: int, null: int, config: dict[str, Any]):
        """Serve the owner at the other end of ``source``."""
        self.source, self.null, self.config = source, null, config
        self.waiting: list[tuple[dict[str, Any], bytes]] = []

    def _killed(self) -> int:
        return processes.out_of_memory(self.config["oom_files"])

    def _asked_to_stop(self, number: int) -> bool:
        """Read a frame in mid-call: whether the call is to end."""
        request, blob = receive(self.source)
        if request["op"] == "cancel":
            return bool(request["id"] == number)
        self.waiting.append((request, blob))
        return True

    def run(self, request: dict[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
        """A program, or code in an interpreter that nothing has touched."""
        started, killed, had_session = time.monotonic(), self._killed(), session.pid is not None
        if isinstance(request.get("argv"), str):
            import shutil

            request["argv"] = [shutil.which("bash") or "sh", "-c", request["argv"]]
        out_r, out_w = os.pipe()
        err_r, err_w = os.pipe()
        pid = fork()
        if pid == 0:
            self._child(request, blob, out_w, err_w)
        os.close(out_w)
        os.close(err_w)
        outputs = {out_r: Output(request["max_output"]), err_r: Output(request["max_output"])}
        ended = os.pidfd_open(pid)
        poll = select.poll()
        for fd in (*outputs, ended, self.source):
            poll.register(fd, select.POLLIN)
        status, code, deadline = "ok", None, started + request["timeout"]
        while code is None and status == "ok":
            left = deadline - time.monotonic()
            if left <= 0:
                status = "timeout"
            elif sum(o.total for o in outputs.values()) > request["flood"]:
                status = "output_limit"
            else:
                for fd, _ in poll.poll(left * 1000 + 1):
                    if fd == ended:
                        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    elif fd == self.source:
                        if self._asked_to_stop(request["id"]):
                            status = "cancelled"
                    elif data := os.read(fd, CHUNK):
                        outputs[fd].add(data)
                    else:
                        poll.unregister(fd)
        clean = end_all(spare_session=True)
        for fd, output in outputs.items():
            output.drain(fd)
            os.close(fd)
        os.close(ended)
        if status == "ok" and self._killed() > killed:
            status = "memory_limit"
        out, err = (o.take() for o in outputs.values())
        return {
            "status": status,
            "exit": code,
            "out": len(out),
            "duration": time.monotonic() - started,
            "bytes": sum(o.total for o in outputs.values()),
            "lost": had_session and session.pid is None,
            "clean": clean,
        }, out + err

    def _child(self, request: dict[str, Any], blob: bytes, out: int, err: int) -> NoReturn:
        """The forked side of `run`."""
        status = 127
        try:
            source = self.null
            if blob and "argv" in request:
                source = os.memfd_create("stdin")
                write_all(source, blob)
                os.lseek(source, 0, 0)
            become_agent(self.config)
            for fd, place in ((source, 0), (out, 1), (err, 2)):
                os.dup2(fd, place)
            os.closerange(3, 256)
            os.environ.update(request.get("env") or {})
            if request.get("cwd"):
                os.chdir(request["cwd"])
            if "argv" in request:
                status = _execute(request["argv"])
            else:
                status = interpreter.run_code(blob.decode(), interpreter.main_module())
        except BaseException as error:
            with contextlib.suppress(BaseException):
                os.write(2, f"{type(error).__name__}: {error}\n".encode(errors="replace"))
        finally:
            os._exit(status)

    def _start_session(self) -> None:
        code_r, session.code = os.pipe()
        session.done, done_w = os.pipe()
        session.output, out_w = os.pipe()
        pid = fork()
        if pid == 0:
            try:
                os.dup2(code_r, interpreter.CODE_IN)
                os.dup2(done_w, interpreter.STATUS_OUT)
                become_agent(self.config)
                for fd, place in ((self.null, 0), (out_w, 1), (out_w, 2)):
                    os.dup2(fd, place)
                os.closerange(3, interpreter.CODE_IN)
                os.closerange(interpreter.STATUS_OUT + 1, 1024)
                interpreter.serve_session()
            finally:
                os._exit(1)
        for fd in (code_r, done_w, out_w):
            os.close(fd)
        os.set_blocking(session.code, False)
        session.pid = pid

    def interact(self, request: dict[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
        """Code in the session."""
        started, killed = time.monotonic(), self._killed()
        if session.pid is None:
            self._start_session()
        output = Output(request["max_output"])
        status, code = self._converse(request, blob, output, started + request["timeout"])
        alive = session.pid is not None
        if alive:
            output.drain(session.output)
        clean = end_all(spare_session=alive, spare_below=status == "ok")
        if self._killed() > killed and status in ("ok", "died"):
            status = "memory_limit"
        data = output.take()
        return {
            "status": status,
            "exit": code if status in ("ok", "memory_limit") else None,
            "out": len(data),
            "duration": time.monotonic() - started,
            "bytes": output.total,
            "lost": session.pid is None,
            "clean": clean,
        }, data

    def _converse(
        self, request: dict[str, Any], blob: bytes, output: Output, deadline: float
    ) -> tuple[str, int | None]:
        """Hand the code over and wait for its exit code; interrupt it if it must end, kill it if it does not."""
        token = os.urandom(8)
        todo = memoryview(token + struct.pack(">I", len(blob)) + blob)
        pipes = session.code, session.done, session.output
        into, done, written = pipes
        poll = select.poll()
        for fd in (written, done, self.source):
            poll.register(fd, select.POLLIN)
        poll.register(into, select.POLLOUT)
        status, answer, interrupted = "ok", b"", False
        while True:
            left = deadline - time.monotonic()
            if status == "ok":
                status = "timeout" if left <= 0 else "output_limit" if output.total > request["flood"] else "ok"
            if status != "ok" and not interrupted:
                interrupted, deadline = True, time.monotonic() + _INTERRUPT_S
                os.kill(session.pid or 0, signal.SIGINT)
                continue
            if left <= 0 or output.total > 2 * request["flood"]:
                session.end()
                return status, None
            for fd, _ in poll.poll(left * 1000 + 1):
                if fd == self.source:
                    if self._asked_to_stop(request["id"]) and status == "ok":
                        status = "cancelled"
                elif fd == written:
                    if data := os.read(written, CHUNK):
                        output.add(data)
                    else:
                        poll.unregister(written)
                elif fd == into:
                    with contextlib.suppress(BlockingIOError):
                        try:
                            todo = todo[os.write(into, todo[:CHUNK]) :]
                        except BrokenPipeError:
                            todo = todo[:0]
                    if not todo:
                        poll.unregister(into)
                else:
                    part = os.read(done, 12 - len(answer))
                    answer += part
                    if len(answer) == 12 and answer[:8] == token:
                        return status, struct.unpack(">I", answer[8:])[0]
                    if not part or len(answer) == 12:  # it has ended, or says what only the agent can have written
                        output.drain(written)
                        session.end()
                        return ("died" if status == "ok" else status), None


def _execute(argv: list[str]) -> int:
    """Become another program; return the shell's exit code if that fails."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode(errors="replace"))
        return 127 if isinstance(error, FileNotFoundError) else 126
