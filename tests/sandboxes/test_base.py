"""Limits, the filter of system calls, and the client's side of a broken stream."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import struct
import threading
import time

import pytest
from agentgym.sandboxes import Limits, SandboxLost, SandboxUnavailable, open_sandbox, seccomp
from agentgym.sandboxes.client import Box, Setup
from agentgym.sandboxes.link import MultiplexedLink, SocketLink

from agentgym.errors import ConfigError, SandboxError


def test_limits_follow_the_memory():
    assert (Limits().workspace_mb, Limits().tmp_mb) == (256, 64)
    assert (Limits(memory_mb=128).workspace_mb, Limits(memory_mb=128).tmp_mb) == (64, 16)
    assert Limits(workspace_mb=10).workspace_mb == 10


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"memory_mb": 1}, "memory_mb is 1: it must be a number and at least 64"),
        ({"memory_mb": 512.5}, "memory_mb is 512.5: it must be a whole number"),
        ({"cpus": 0}, "cpus is 0"),
        ({"cpus": math.nan}, "cpus is nan"),
        ({"cpus": math.inf}, "cpus is inf"),
        ({"pids": True}, "pids is True"),
        ({"pids": "many"}, "pids is 'many'"),
        ({"open_files": 10}, "open_files is 10"),
        ({"inodes": -1}, "inodes is -1"),
        ({"workspace_mb": 500}, "raise memory_mb to 838"),
    ],
)
def test_limits_that_are_none(wrong, said):
    with pytest.raises(ConfigError, match=said):
        Limits(**wrong)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_jump_of_the_filter_stays_inside(machine):
    code = [
        struct.unpack("<HBBI", seccomp.program(machine)[i : i + 8]) for i in range(0, len(seccomp.program(machine)), 8)
    ]
    assert len(code) < 4096
    for at, (kind, then, otherwise, _) in enumerate(code):
        if kind & 7 == 5:  # a jump
            assert at + 1 + max(then, otherwise) < len(code)
    assert code[-1] == (6, 0, 0, 0x7FFF0000)


def test_no_filter_for_an_unknown_machine():
    with pytest.raises(SandboxUnavailable, match="riscv64"):
        seccomp.program("riscv64")


class FakeWorker:
    """The other end of a stream, saying what a test wants."""

    def __init__(self, answer):
        self.ours, theirs = socket.socketpair()
        self.answer, self.removed = answer, 0
        threading.Thread(target=self.serve, daemon=True).start()
        self.box = Box("fake", frozenset(), Setup("/workspace", ()), Limits(), SocketLink(theirs), self.remove)

    def remove(self):
        self.removed += 1

    def read(self):
        head, blob = struct.unpack(">II", self.ours.recv(8, socket.MSG_WAITALL))
        data = self.ours.recv(head + blob, socket.MSG_WAITALL)
        return json.loads(data[:head])

    def frame(self, answer, blob=b""):
        head = json.dumps(answer).encode()
        return struct.pack(">II", len(head), len(blob)) + head + blob

    def serve(self):
        hello = self.read()
        self.ours.sendall(b"noise" + hello["nonce"].encode() + self.frame({"id": 0, "python": "3.12.0"}))
        self.answer(self, self.read())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda w, r: w.ours.sendall(b"\xff" * 100), "nonsense: a frame too large"),
        (lambda w, r: w.ours.sendall(struct.pack(">II", 5, 0) + b"{junk"), "nonsense"),
        (lambda w, r: w.ours.close(), "its worker has ended"),
        (lambda w, r: (w.ours.sendall(b"\0\0"), w.ours.close()), "its worker has ended"),
        (lambda w, r: w.ours.sendall(w.frame({"id": r["id"], "bug": "KeyError: 'x'"})), "KeyError"),
        (lambda w, r: w.ours.sendall(w.frame({"id": r["id"], "errno": 11, "error": "no room"})), "no room"),
    ],
    ids=["noise", "junk", "closed", "cut", "bug", "error"],
)
def test_a_broken_worker_is_a_lost_box(answer, said):
    worker = FakeWorker(answer)
    with pytest.raises(SandboxLost, match=said):
        worker.box.exec("true")
    assert not worker.box.alive
    assert worker.removed == 1
    with pytest.raises(SandboxLost, match=said):
        worker.box.ping()
    worker.box.close()
    assert worker.removed == 1


def test_answers_to_calls_that_were_given_up_are_passed_over():
    done = {"status": "ok", "exit": 0, "out": 2, "duration": 0.1, "bytes": 2, "lost": False, "clean": True}

    def answer(worker, request):
        late = worker.frame({"id": request["id"] - 1, **done}, b"no")
        worker.ours.sendall(late + worker.frame({"id": request["id"], **done}, b"hi"))

    assert FakeWorker(answer).box.exec("true").stdout == "hi"


def test_a_worker_that_does_not_answer_is_lost_in_time(monkeypatch):
    monkeypatch.setattr("agentgym.sandboxes.client._GRACE_S", 0.2)
    worker = FakeWorker(lambda w, r: time.sleep(5))
    with pytest.raises(SandboxLost, match="no answer within"):
        worker.box.exec("true", timeout=0.1)
    assert worker.removed == 1


def test_dockers_stream_is_taken_apart_wherever_it_is_cut():
    ours, theirs = socket.socketpair()
    frames = [(1, b"abc"), (2, b"an error"), (1, b""), (1, b"defg")]
    data = b"".join(struct.pack(">BxxxI", kind, len(part)) + part for kind, part in frames)
    link = MultiplexedLink(theirs, keep=None)

    def send():
        for i in range(len(data)):
            ours.send(data[i : i + 1])
            time.sleep(0.0005)
        ours.close()

    threading.Thread(target=send).start()
    seen = b""
    while part := link.receive(time.monotonic() + 10):
        seen += part
    assert seen == b"abcdefg"
    assert link.said() == b"an error"


@pytest.mark.bwrap
def test_ctrl_c_ends_the_call_and_spares_the_box(bubblewrap):
    with open_sandbox("bubblewrap") as box:
        box.python("x = 1")
        threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            box.exec("sleep 30", timeout=60)
        assert box.python("x").stdout == "1\n"


@pytest.mark.bwrap
def test_a_forked_process_does_not_keep_a_box_open(bubblewrap):
    box = open_sandbox("bubblewrap")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            box.ping()
        except SandboxLost:
            code = 0
            time.sleep(3)
        os._exit(code)
    try:
        time.sleep(0.3)
        assert box.exec("echo hi").stdout == "hi\n"
        started = time.monotonic()
        box.close()
        assert time.monotonic() - started < 2
    finally:
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.bwrap
def test_modules_are_there_before_the_first_call(bubblewrap):
    with open_sandbox("bubblewrap", preload=("sqlite3",)) as box:
        assert box.python("import sys; 'sqlite3' in sys.modules", fresh=True).stdout == "True\n"
    with pytest.raises(SandboxLost, match="No module named 'nonexistent'"):
        open_sandbox("bubblewrap", preload=("nonexistent",))


@pytest.mark.bwrap
def test_a_runtime_is_never_left_out_without_a_word(bubblewrap, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    for backend in ("auto", "bubblewrap", "unsafe-local"):
        with pytest.raises(ConfigError, match="runtime='runsc' is Docker's to start"):
            open_sandbox(backend, runtime="runsc")


@pytest.mark.bwrap
def test_input_that_is_too_long_costs_no_box(bubblewrap):
    with open_sandbox("bubblewrap") as box:
        with pytest.raises(ConfigError, match="at most 67108864 bytes of input"):
            box.exec(["cat"], stdin=bytes((64 << 20) + 1))
        assert box.exec("echo hi").stdout == "hi\n"


def test_a_link_that_comes_too_late_is_closed():
    """Closing in another thread while the daemon is coming back."""
    worker = FakeWorker(lambda w, r: w.ours.close())
    ours, theirs = socket.socketpair()
    late = SocketLink(theirs)

    def relink():
        worker.box.close()
        ours.close()
        return late

    worker.box._relink = relink
    with pytest.raises(SandboxError, match="broke in mid-call"):
        worker.box.ping()
    with pytest.raises(SandboxLost):
        worker.box.ping()
    assert late.sock.fileno() == -1
    assert worker.removed == 1
