"""The worker's loop."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from typing import Any, NoReturn

from agentgym.sandboxes.worker import files, processes
from agentgym.sandboxes.worker.calls import Calls
from agentgym.sandboxes.worker.frames import receive, reply, write_all
from agentgym.sandboxes.worker.lockdown import lock_down

_PRELOAD = (
    "ast linecache shutil traceback "
    "base64 collections csv dataclasses datetime decimal fractions functools glob heapq itertools math random re"
)
"""What calls need, and what agents often import: children are forks, and have it at once. Loaded once the owner knows
that the box is open."""

Answer = tuple[dict[str, Any], bytes]


class Worker:
    """Answers the owner's requests, one after the other."""

    def __init__(self) -> None:
        """Move the owner's stream out of reach of what will be started."""
        self.source, self.sink = os.dup(0), os.dup(1)
        null = os.open("/dev/null", os.O_RDWR)
        for place in (0, 1, 2):
            os.dup2(null, place)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        self.config: dict[str, Any] = {}
        self.calls = Calls(self.source, null, self.config)
        self.answers = {
            "hello": self.hello,
            "run": self.calls.run,
            "interact": self.calls.interact,
            "put": files.put,
            "get": files.get,
            "list": files.list_folder,
            "reset": self.reset,
            "stop": self.stop,
            "ping": lambda request, blob: ({}, b""),
        }

    def serve(self) -> NoReturn:
        """Answer until the owner is gone."""
        try:
            while True:
                request, blob = self.calls.waiting.pop(0) if self.calls.waiting else receive(self.source)
                if request["op"] != "cancel":  # the call that it meant is over already
                    self._serve_one(request, blob)
        except (EOFError, BrokenPipeError):
            pass
        finally:
            self._leave()

    def _serve_one(self, request: dict[str, Any], blob: bytes) -> None:
        try:
            answer, data = self.answers[request["op"]](request, blob)
        except OSError as error:
            answer, data = {"errno": error.errno or 5, "error": error.strerror or str(error)}, b""
        except EOFError:
            raise
        except Exception as error:
            answer, data = {"bug": f"{type(error).__name__}: {error}"}, b""
        processes.reap()
        reply(self.sink, {"id": request["id"], **answer}, data)
        if request["op"] == "hello":
            for name in _PRELOAD.split():
                with contextlib.suppress(ImportError):
                    __import__(name)
            gc.freeze()  # or every child's first collection of garbage would walk through, and copy, what was loaded

    def _leave(self) -> NoReturn:
        """End; as the first process of a namespace this takes all others along."""
        if self.config and not processes.FIRST and os.getpid() == processes.OWN:
            processes.end_all(spare_session=False)
            if self.config["remove"]:
                import shutil

                shutil.rmtree(self.config["workspace"], ignore_errors=True)
        os._exit(0)

    def hello(self, request: dict[str, Any], blob: bytes) -> Answer:
        """Say the nonce, so that the owner finds its place in the stream; the first time, lock the box down."""
        answer = {"python": sys.version.split()[0]}
        if not self.config:
            self.config.update(request["config"])
            try:
                os.chdir(self.config["workspace"])
                for name in self.config["preload"]:
                    __import__(name)
                lock_down(self.config, blob)
            except Exception as error:
                answer["error"] = f"{type(error).__name__}: {error}"
        write_all(self.sink, request["nonce"].encode())
        return answer, b""

    def stop(self, request: dict[str, Any], blob: bytes) -> Answer:
        """No processes."""
        if not processes.end_all(spare_session=False):
            raise OSError("processes are left")
        return {}, b""

    def reset(self, request: dict[str, Any], blob: bytes) -> Answer:
        """No processes, no files."""
        self.stop(request, blob)
        for path in filter(os.path.isdir, self.config["scratch"]):
            with contextlib.suppress(OSError):
                os.chmod(path, 0o1777)
            files.wipe(path)
            if os.listdir(path):
                raise OSError(f"files are left in {path}")
        for kind in ("shm", "sem", "msg") if processes.FIRST else ():
            with contextlib.suppress(FileNotFoundError), open(f"/proc/sysvipc/{kind}") as file:
                if len(file.readlines()) > 1:
                    raise OSError(f"System V {kind} objects are left")
        return {}, b""
