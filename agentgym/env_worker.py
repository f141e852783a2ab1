"""Environments on threads or in processes of their own, with deadlines, and a pool that re-uses them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium as gym

from agentgym.env_process import EnvProcess, Settle
from agentgym.errors import AgentGymError, ConfigError, EnvError, MissingDependency, unknown
from agentgym.pictures import Sight, observed
from agentgym.types import ToolUse

_log = logging.getLogger(__name__)


class StepTimeout(EnvError):
    """The environment did not answer before its deadline."""


def check_id(env_id: str) -> None:
    """Check that an environment is registered; ``module:Name-v0`` imports the module that registers it first.

    Raises:
        ConfigError: If there is no such id or module.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a module of the user may raise anything, SystemExit too
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"environment {env_id!r}: cannot import {module}: {reason}") from error
    if name not in gym.registry:
        raise unknown("environment", env_id, [i for i in gym.registry if i.startswith("agentgym/")])


def make_env(env_id: str, kwargs: dict[str, Any] | None = None) -> gym.Env[str, str]:
    """Make a registered environment.

    Raises:
        ConfigError: If there is no such id or an argument is wrong.
        MissingDependency: If its engine is not installed.
        EnvError: If it cannot be made for another reason.
    """
    check_id(env_id)
    try:
        return gym.make(env_id, **(kwargs or {}))
    except AgentGymError:
        raise
    except TypeError as error:
        raise ConfigError(f"{env_id}: wrong env.kwargs: {error}") from error
    except ModuleNotFoundError as error:
        raise MissingDependency(f"{env_id} needs {error.name}, which is not installed") from error
    except Exception as error:
        raise EnvError(f"{env_id} cannot be made: {type(error).__name__}: {error}") from error


def instructions_of(env: gym.Env[str, str]) -> str:
    """What the environment tells an agent before the first observation."""
    return str(getattr(env.unwrapped, "instructions", "You act in a text environment."))


class Start(NamedTuple):
    """What an episode begins with.

    Attributes:
        observation: The first observation.
        info: The first ``info``.
        instructions: What the environment tells an agent before that.
        tools: JSON schemas of its tools: its attribute ``tools``, if it has one.
    """

    observation: str | Sight
    info: dict[str, Any]
    instructions: str
    tools: list[dict[str, Any]]


class Step(NamedTuple):
    """What came of an action: Gymnasium's five, and the calls of tools in the environment's attribute ``calls``."""

    observation: str | Sight
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    calls: list[ToolUse]


class EnvThread:
    """One environment on a daemon thread of its own, so that a call that hangs can be abandoned."""

    hung = False
    alive = True

    def __init__(self, factory: Callable[[], gym.Env[str, str]]):
        """Start the thread; the environment is made in it on the first call."""
        self._factory = factory
        self._calls: queue.SimpleQueue[tuple[str, tuple[Any, ...], Settle] | None] = queue.SimpleQueue()
        self._env: gym.Env[str, str] | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True, name="agentgym-env")
        self._thread.start()

    def submit(self, method: str, arguments: tuple[Any, ...], settle: Settle) -> None:
        """Queue a call of `make`, `reset` or `step`; ``settle`` gets its result or error, on the thread."""
        self._calls.put((method, arguments, settle))

    def close(self) -> None:
        """Let the thread close the environment once it is done with what it is doing."""
        self._calls.put(None)

    def join(self, timeout: float) -> bool:
        """Wait until the environment is closed; False if it still hangs."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            method, arguments, settle = call
            result: Any = None
            error: Exception | None = None
            try:
                result = getattr(self, f"_{method}")(*arguments)
            except AgentGymError as caught:
                error = caught
            except BaseException as caught:  # SystemExit, CancelledError or StopIteration would upset the event loop
                error = EnvError(f"{method} raised {type(caught).__name__}: {caught}")
                error.__cause__ = caught
            settle(result, error)
        if self._env is not None:
            try:
                self._env.close()
            except BaseException as caught:
                _log.warning("closing the environment raised %s: %s", type(caught).__name__, caught)

    def _make(self) -> gym.Env[str, str]:
        if self._env is None:
            self._env = self._factory()
        return self._env

    def _check(self) -> None:
        self._make()

    def _reset(self, seed: int, options: dict[str, Any]) -> Start:
        env = self._make()
        observation, info = env.reset(seed=seed, options=dict(options))
        tools = list(getattr(env.unwrapped, "tools", ()))
        return Start(_seen(observation), dict(info), _text(instructions_of(env)), tools)

    def _step(self, action: str) -> Step:
        assert self._env is not None
        observation, reward, terminated, truncated, info = self._env.step(action)
        if not math.isfinite(reward):
            raise EnvError(f"the reward is {reward}")
        calls = list(getattr(self._env.unwrapped, "calls", ()))
        return Step(_seen(observation), float(reward), bool(terminated), bool(truncated), dict(info), calls)


class EnvSeat:
    """One environment in another process, with the face of an `EnvThread`."""

    def __init__(self, process: EnvProcess, number: int):
        """Take a place in a process."""
        self._process, self._number, self.hung = process, number, False
        process.live += 1

    @property
    def alive(self) -> bool:
        """Whether the process can be used."""
        return not self._process.retired

    def submit(self, method: str, arguments: tuple[Any, ...], settle: Settle) -> None:
        """Send a call; ``settle`` gets its result or error, on another thread."""
        self._process.call(self._number, method, arguments, settle)

    def close(self) -> None:
        """Close the environment. One that hangs keeps others out of its process, which ends with the last of them."""
        self._process.live -= 1
        if self.hung:
            self._process.retired = True
        if self._process.retired and not self._process.live:
            self._process.kill()
        else:
            self._process.release(self._number)

    def join(self, timeout: float) -> bool:
        """The pool waits for the process instead."""
        return True


class EnvWorker:
    """An environment as an episode drives it: awaited calls, each with a deadline."""

    def __init__(self, seat: EnvThread | EnvSeat):
        """Drive the environment of a thread or of another process."""
        self.seat = seat

    async def reset(self, seed: int, options: dict[str, Any], timeout: float) -> Start:
        """Reset, making the environment first if need be.

        Raises:
            EnvError: If it failed or took longer than ``timeout`` seconds.
        """
        result: Start = await self._call("reset", (seed, options), timeout)
        return result

    async def step(self, action: str, timeout: float) -> Step:
        """Step.

        Raises:
            EnvError: If it failed or took longer than ``timeout`` seconds.
        """
        result: Step = await self._call("step", (action,), timeout)
        return result

    async def _call(self, method: str, arguments: tuple[Any, ...], timeout: float) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: Exception | None) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is gone: nobody waits any more
                loop.call_soon_threadsafe(_settle, future, result, error)

        self.seat.submit(method, arguments, settle)
        try:
            return await asyncio.wait_for(future, timeout)
        except TimeoutError as error:
            self.seat.hung = True
            raise StepTimeout(f"{method} took longer than {timeout:g} s") from error


def _seen(observation: Any) -> str | Sight:
    """The observation; its text without halves of surrogate pairs, which no tokenizer takes."""
    found = observed(observation)
    return _text(found) if isinstance(found, str) else found._replace(text=_text(found.text))


def _text(text: str) -> str:
    return text.encode(errors="replace").decode()


def _deliver(future: Future[Any], result: Any, error: Exception | None) -> None:
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


class EnvPool:
    """Environments of one id and one set of arguments, handed out to one episode at a time."""

    def __init__(self, env_id: str, kwargs: dict[str, Any] | None = None, processes: int = 0):
        """Check the id; nothing is made yet.

        Args:
            env_id: Gymnasium id, or ``module:id``.
            kwargs: Arguments of ``gym.make``.
            processes: Processes over which the environments are spread; 0 keeps them on threads of this one.

        Raises:
            ConfigError: If there is no such id.
        """
        self.env_id, self.kwargs = env_id, dict(kwargs or {})
        check_id(env_id)
        self._most = processes
        self._processes: list[EnvProcess] = []
        self._numbers = itertools.count()
        self._idle: list[EnvWorker] = []
        self._closing: list[EnvWorker] = []
        self._lock = threading.Lock()

    def check(self, timeout: float = 120.0) -> None:
        """Make one environment, where episodes will be played.

        Raises:
            ConfigError: For wrong arguments.
            MissingDependency: If its engine is not installed.
            EnvError: If it cannot be made for another reason.
        """
        self._ask(timeout, ("check", ()))

    def first_info(self, seed: int, options: dict[str, Any], *actions: str, timeout: float = 120.0) -> dict[str, Any]:
        """The ``info`` of a reset, or of the last of some actions after it.

        Raises:
            EnvError: If it failed or took longer than ``timeout`` seconds.
        """
        info: dict[str, Any] = self._ask(timeout, ("reset", (seed, options)), *(("step", (a,)) for a in actions)).info
        return info

    def _ask(self, timeout: float, *calls: tuple[str, tuple[Any, ...]]) -> Any:
        """Make calls, one after the other, of one environment; the result is that of the last."""
        worker = self.take()
        try:
            for method, arguments in calls:
                done: Future[Any] = Future()
                worker.seat.submit(method, arguments, functools.partial(_deliver, done))
                result = done.result(timeout)
        except TimeoutError as error:
            self.discard(worker)
            raise EnvError(f"{self.env_id} did not {method} within {timeout:g} s") from error
        except AgentGymError:
            self.discard(worker)
            raise
        self.give_back(worker)
        return result

    def take(self) -> EnvWorker:
        """Hand out an idle environment or a fresh one, to any thread."""
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.seat.alive:
                    return worker
                worker.seat.close()
            if not self._most:
                return EnvWorker(EnvThread(lambda: make_env(self.env_id, self.kwargs)))
            good = [p for p in self._processes if not p.retired]
            if len(good) < self._most:
                good.append(EnvProcess(self.env_id, self.kwargs))
                self._processes.append(good[-1])
            return EnvWorker(EnvSeat(min(good, key=lambda p: p.live), next(self._numbers)))

    def give_back(self, worker: EnvWorker) -> None:
        """Take back an environment that works."""
        self._idle.append(worker)

    def discard(self, worker: EnvWorker) -> None:
        """Take back an environment that failed: it is closed, never handed out again."""
        worker.seat.close()
        with self._lock:
            self._closing = [old for old in self._closing if not old.seat.join(0)] + [worker]
            self._processes = [p for p in self._processes if not (p.retired and p.join(0))]

    def close(self, timeout: float = 10.0) -> None:
        """Close all environments; threads that still hang after ``timeout`` seconds die with the process."""
        deadline = time.monotonic() + timeout
        for worker in self._idle:
            worker.seat.close()
        for process in self._processes:
            process.close()
        for worker in [*self._idle, *self._closing]:
            worker.seat.join(max(0.0, deadline - time.monotonic()))
        for process in self._processes:
            if not process.join(max(0.0, deadline - time.monotonic())):
                process.kill()
                process.join(5.0)
        self._idle, self._closing, self._processes = [], [], []

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass
class EnvConfig:
    """The environment.

    Attributes:
        id: Gymnasium id, or ``module:id`` to import the module that registers it.
        kwargs: Arguments of ``gym.make``.
        options: Options of ``env.reset`` in training; what is given takes the place of ``{"split": "train"}``.
        eval_options: Options of ``env.reset`` in evaluation; what is given takes the place of ``{"split": "test"}``.
        processes: Processes that hold the environments, so that one that dies or hangs for ever does not take the
            run with it; 0 keeps them on threads.
    """

    id: str = "agentgym/TextWorldExpress-v0"
    kwargs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=lambda: {"split": "train"})
    eval_options: dict[str, Any] = field(default_factory=lambda: {"split": "test"})
    processes: int = 0

    def __post_init__(self) -> None:
        if self.processes < 0:
            raise ConfigError(f"env.processes is {self.processes}: it must be 0 (threads) or more")

    def pool(self) -> EnvPool:
        """Check that the environment can be made, and return a pool of it.

        Raises:
            ConfigError: For an unknown id or wrong arguments.
            MissingDependency: If its engine is not installed.
        """
        pool = EnvPool(self.id, self.kwargs, self.processes)
        try:
            pool.check()
        except BaseException:
            pool.close()
            raise
        return pool
