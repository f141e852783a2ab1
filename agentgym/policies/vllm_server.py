"""A vLLM server in an environment of its own, started, watched and ended by this process.

It listens on a socket file in a folder that nobody else may enter: no port is taken, and no key is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from agentgym.errors import ConfigError, EngineError

_VARIABLE = "AGENTGYM_VLLM_PYTHON"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # registers the addresses that pause, reload and resume
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
_POLL_S, _LINES = 0.2, 3


@dataclass(frozen=True)
class Install:
    """A Python with vLLM.

    Attributes:
        python: Its interpreter.
        version: Version of vLLM.
        cpu: Whether it is the build for CPUs.
    """

    python: str
    version: str
    cpu: bool


def find_install(python: str = "") -> Install:
    """Find the environment with vLLM.

    Args:
        python: Its interpreter; by default that in AGENTGYM_VLLM_PYTHON, ``.venv-vllm`` here, or this one.

    Raises:
        ConfigError: If there is none.
    """
    here = Path(".venv-vllm/bin/python")
    chosen = python or os.environ.get(_VARIABLE) or (str(here) if here.exists() else sys.executable)
    ask = (
        "from importlib.metadata import version, PackageNotFoundError\n"
        "for name in ('vllm', 'vllm-cpu'):\n"
        "    try: print(name, version(name)); break\n"
        "    except PackageNotFoundError: pass\n"
    )
    try:
        said = subprocess.run([chosen, "-c", ask], capture_output=True, text=True, timeout=60).stdout.split()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(
            f"decode.python: {chosen} cannot be run ({error}); set decode.python or {_VARIABLE}"
        ) from None
    if len(said) != 2:
        raise ConfigError(
            f"vLLM is not installed in the environment of {chosen}: run `make vllm-cpu` (or install vllm into an "
            f"environment of its own) and set decode.python or {_VARIABLE} to its interpreter"
        )
    return Install(chosen, said[1], said[0] == "vllm-cpu")


class Folder:
    """A folder that is removed when this process ends, killed or not.

    Attributes:
        path: Where it is; nobody else may enter it.
    """

    def __init__(self, parent: str = "", log: Path | None = None, environment: Mapping[str, str] | None = None):
        """Make the folder, and the program that keeps it.

        Args:
            parent: Folder to make it in; memory by default.
            log: What is started in it writes here.
            environment: Variables of what is started in it.

        Raises:
            ConfigError: If it cannot be made.
        """
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        try:
            self.path = Path(tempfile.mkdtemp(prefix="agentgym-vllm-", dir=parent or memory))
        except OSError as error:
            raise ConfigError(f"decode.weights_dir: {error}") from error
        with open(log or os.devnull, "ab") as file:
            self._host = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("vllm_host.py")), str(self.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the owner
                text=True,
            )

    @property
    def pid(self) -> int:
        """The program under which everything runs that is started in it."""
        return self._host.pid

    def close(self) -> None:
        """End what runs in it, and remove it."""
        assert self._host.stdin is not None
        with contextlib.suppress(OSError):
            self._host.stdin.close()
        self._host.wait()


class VLLMServer(Folder):
    """A server process and all that it starts, in a folder. Ends with this process, whatever ends that.

    Attributes:
        url: Where it listens: a socket file.
        log: What it writes.
    """

    def __init__(self, install: Install, log: Path, kv_cache_gb: int = 2, start_timeout: float = 600.0):
        """Prepare; nothing is started yet.

        Args:
            install: Where vLLM is.
            log: What the server writes is appended here.
            kv_cache_gb: Memory for keys and values of the build for CPUs.
            start_timeout: Seconds within which it must answer.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gb)}
        environment.pop("PYTHONPATH", None)
        super().__init__("", log, environment)
        self._socket = self.path / "socket"
        self.url = f"unix:{self._socket}"
        self.log, self._start_timeout, self._install = log, start_timeout, install
        self._started = 0
        self._codes: dict[int, int] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, model: Path, arguments: Sequence[str]) -> None:
        """Start the server, in place of one that ran, and wait until it answers.

        Raises:
            EngineError: If it ended, or did not answer in time; the end of its log is in the message.
        """
        self._socket.unlink(missing_ok=True)
        server = [self._install.python, "-m", "vllm.entrypoints.openai.api_server"]
        self._tell([*server, "--model", str(model), "--uds", str(self._socket), "--enable-scale-out", *arguments])
        deadline = time.monotonic() + self._start_timeout
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self._socket)), timeout=5.0) as client:
            while time.monotonic() < deadline:
                if (how := self.ended) is not None:
                    raise EngineError(f"the vLLM server ended as it started ({how}): {self._last_lines()}")
                try:
                    if client.get("http://vllm/health").status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                time.sleep(_POLL_S)
        raise EngineError(f"the vLLM server did not answer within {self._start_timeout:g} s: see {self.log}")

    @property
    def ended(self) -> str | None:
        """How the server ended, None while it runs."""
        if self._host.poll() is not None:
            return "its host was killed"
        code = self._codes.get(self._started - 1)
        if code is None:
            return None
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _tell(self, command: list[str]) -> None:
        assert self._host.stdin is not None
        self._started += 1
        try:
            self._host.stdin.write(json.dumps(command) + "\n")
            self._host.stdin.flush()
        except OSError as error:
            raise EngineError(f"the host of the vLLM server is gone: {error}") from error

    def _listen(self) -> None:
        assert self._host.stdout is not None
        with self._host.stdout as lines:
            for line in lines:
                number, code = map(int, line.split())
                self._codes[number] = code

    def _last_lines(self) -> str:
        """Where the log names its last error, or its end."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        found = [i for i, line in enumerate(lines) if "Error: " in line]
        said = lines[found[-1] :][:_LINES] if found else lines[-_LINES:]
        return " ".join(" ".join(said).split())[:600] + f" (all of it: {self.log})"
