"""The peers' side of ``sandbox_calls.py``; runs in an interpreter of its own, which has the peers installed.

Reads one JSON request a line: ``{"peer", "op", "code"}`` with ``op`` one of ``open``, ``call`` and ``close``; answers
with one JSON line: ``{"seconds", "output"}``, or ``{"error"}``. A call runs Python code in a new interpreter, as each
of the peers does; the time is that of the peer's own method.
"""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import docker

IMAGE = sys.argv[1]


class ExecRun:
    """The docker SDK: a container of the image with the daemon's defaults, and ``exec_run``."""

    def __init__(self) -> None:
        self.client = docker.from_env()

    def open(self) -> str:
        self.container = self.client.containers.run(IMAGE, ["sleep", "infinity"], detach=True, stop_signal="SIGKILL")
        return ""

    def call(self, code: str) -> str:
        return self.container.exec_run(["python3", "-c", code]).output.decode()

    def close(self) -> str:
        self.container.remove(force=True)
        return ""


class ExecRunBash(ExecRun):
    """The same for a line of shell."""

    def call(self, code: str) -> str:
        return self.container.exec_run(["bash", "-c", code]).output.decode()


class LLMSandbox:
    """llm-sandbox on docker, without its set-up of a virtual environment."""

    def open(self) -> str:
        from llm_sandbox import SandboxBackend, SandboxSession

        self.session: Any = SandboxSession(
            backend=SandboxBackend.DOCKER,
            lang="python",
            image=IMAGE,
            workdir="/tmp",
            skip_environment_setup=True,
            runtime_configs={"stop_signal": "SIGKILL"},
        )
        self.session.open()
        return ""

    def call(self, code: str) -> str:
        return self.session.run(code).stdout

    def close(self) -> str:
        self.session.close()
        return ""


class InspectAI:
    """inspect_ai's docker sandbox, opened from a compose file as an evaluation does."""

    def __init__(self) -> None:
        from inspect_ai.util._sandbox.docker.docker import DockerSandboxEnvironment

        self.runner = asyncio.Runner()
        self.sandbox = DockerSandboxEnvironment
        self.folder = tempfile.TemporaryDirectory()
        self.config = str(Path(self.folder.name) / "compose.yaml")
        service = {"image": IMAGE, "x-local": True, "command": ["sleep", "infinity"], "network_mode": "none"}
        Path(self.config).write_text(json.dumps({"services": {"default": {**service, "stop_signal": "SIGKILL"}}}))
        self.runner.run(self.sandbox.task_init("bench", self.config))

    def open(self) -> str:
        self.boxes = self.runner.run(self.sandbox.sample_init("bench", self.config, {}))
        return ""

    def call(self, code: str) -> str:
        return self.runner.run(self.boxes["default"].exec(["python3", "-c", code])).stdout

    def close(self) -> str:
        self.runner.run(self.sandbox.sample_cleanup("bench", self.config, self.boxes, False))
        return ""


PEERS: dict[str, type] = {
    "exec_run": ExecRun,
    "exec_run bash": ExecRunBash,
    "llm-sandbox": LLMSandbox,
    "inspect_ai": InspectAI,
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the peers print
    peers: dict[str, Any] = {}
    try:
        for line in sys.stdin:
            request = json.loads(line)
            arguments = [request["code"]] if request["op"] == "call" else []
            try:
                if request["peer"] not in peers:
                    peers[request["peer"]] = PEERS[request["peer"]]()
                peer = peers[request["peer"]]
                start = time.perf_counter()
                output = getattr(peer, request["op"])(*arguments)
                answer = {"seconds": time.perf_counter() - start, "output": output}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)
    finally:
        for peer in peers.values():
            with contextlib.suppress(Exception):
                peer.close()


if __name__ == "__main__":
    main()
