"""Java engines: one Java process an engine, shared by all its environments in this Python process."""

from __future__ import annotations

import atexit
import importlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agentgym.errors import EnvError, MissingDependency, missing

ANSWER_S = 60.0
"""A call that Java does not answer for so long counts as failed."""

_engines: list[JavaEngine] = []


@dataclass(eq=False)
class JavaEngine:
    """An engine in a jar, and its Java process while there are environments that use it.

    Attributes:
        name: What errors call it.
        package: The Python package with the jar; its ``constants`` hold ``JAR_PATH`` and ``BASEPATH``.
        extra: The pip extra that installs the package.
        options: Options of the Java process.
        prepare: Called with every new ``Jvm``; what it returns is the ``prepared`` of that.
        current: The running process, or None.
        lock: Guards ``current`` and the counts of its users.
    """

    name: str
    package: str
    extra: str
    options: tuple[str, ...]
    prepare: Callable[[Jvm], Any] | None = None
    current: Jvm | None = None
    lock: Any = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        _engines.append(self)

    def acquire(self) -> Jvm:
        """Take a share in the running process, or in a new one if there is none or it died.

        Raises:
            MissingDependency: The package or Java is not installed.
            EnvError: Java does not start.
        """
        with self.lock:
            if self.current is None or self.current.dead:
                self.current = Jvm(self)
            self.current.users += 1
            return self.current

    def forget(self) -> None:
        """In a forked child: the process is the parent's, and our copy of its stdin must not keep it alive."""
        if self.current is not None:
            self.current.process.stdin.close()
        self.current, self.lock = None, threading.RLock()


class Jvm:
    """A Java process, counted by its users and ended with the last of them."""

    def __init__(self, engine: JavaEngine) -> None:
        try:
            from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway

            package = importlib.import_module(f"{engine.package}.constants")
        except ImportError as error:
            raise missing(engine.package, engine.extra) from error
        try:
            port, token, self.process = launch_gateway(
                classpath=package.JAR_PATH,
                cwd=package.BASEPATH,  # the engines read their data files from the working directory
                javaopts=list(engine.options),
                die_on_exit=True,  # the JVM ends when its stdin closes, so also when we are killed
                create_new_process_group=True,  # Ctrl-C is for us, not for the JVM
                enable_auth=True,
                return_proc=True,
            )
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise MissingDependency(
                f"java is not installed ({engine.name} runs in it): apt-get install default-jre-headless"
            ) from error
        except ValueError as error:
            raise EnvError(f"java does not start with {' '.join(engine.options)}") from error
        # Java objects are let go by hand: py4j's own finalizers would also run in forked children.
        self.gateway = JavaGateway(
            gateway_parameters=GatewayParameters(
                port=port, auth_token=token, read_timeout=ANSWER_S, enable_memory_management=False
            )
        )
        self.engine = engine
        self.pid = os.getpid()
        self.users = 0
        try:
            self._join = self.call(getattr, self.gateway.jvm.String, "join")
            self.prepared = engine.prepare(self) if engine.prepare else None
        except BaseException:
            self.stop()
            raise

    @property
    def dead(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def check(self) -> None:
        """Check that this Python process is the one that started it.

        Raises:
            EnvError: If not.
        """
        if self.pid != os.getpid():
            raise EnvError("this environment was made before a fork: make it in the process that uses it")

    def call(self, method: Any, *args: Any) -> Any:
        """Call Java.

        Raises:
            EnvError: Whatever went wrong there; if the process died or hung, it is ended.
        """
        self.check()
        try:
            return method(*args)
        except Exception as error:
            if type(error).__name__ == "Py4JJavaError":  # the Java code failed, the process is well
                summary = " ".join(str(error).splitlines()[:2])
                raise EnvError(f"{self.engine.name}: {summary}") from error
            with self.engine.lock:
                self.stop()
            raise EnvError(f"{self.engine.name}: the Java process died or hung") from error

    def join(self, strings: Any) -> list[str]:
        """A Java list of strings without line breaks, fetched in one call and let go."""
        try:
            text = self.call(self._join, "\n", strings)
        finally:
            self.gateway.detach(strings)
        return text.split("\n") if text else []

    def release(self, *objects: Any) -> None:
        """Give the share back, and with it what Java holds for it; the last one to do so ends the process."""
        if self.pid != os.getpid():
            return
        if self.users > 1 and not self.dead:
            for thing in objects:
                self.gateway.detach(thing)
        with self.engine.lock:
            self.users -= 1
            if self.users == 0:
                self.stop()

    def stop(self) -> None:
        """End the process at once (it holds nothing worth saving); the next ``acquire`` starts another."""
        if self.engine.current is self:
            self.engine.current = None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.gateway.close(keep_callback_server=True)


def _stop_all() -> None:
    for engine in _engines:
        if engine.current is not None:
            engine.current.stop()


def _forget_all() -> None:
    for engine in _engines:
        engine.forget()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_forget_all)
