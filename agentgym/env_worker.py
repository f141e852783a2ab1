"""Environments on threads of their own, with deadlines, and a pool that re-uses them between episodes."""

from __future__ import annotations

import asyncio
import importlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from agentgym.errors import AgentGymError, ConfigError, EnvError, MissingDependency, unknown

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
        except ImportError as error:
            raise ConfigError(f"environment {env_id!r}: cannot import {module}: {error}") from error
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


class EnvWorker:
    """One environment, driven from one daemon thread, so that a call that hangs can be abandoned."""

    def __init__(self, factory: Callable[[], gym.Env[str, str]]):
        """Start the thread; the environment is made in it on the first call."""
        self._factory = factory
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any], str] | None] = queue.SimpleQueue()
        self._env: gym.Env[str, str] | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True, name="agentgym-env")
        self._thread.start()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future, what = call
            result: Any = None
            error: Exception | None = None
            try:
                result = function()
            except AgentGymError as caught:
                error = caught
            except BaseException as caught:  # SystemExit, CancelledError or StopIteration would upset the event loop
                error = EnvError(f"{what} raised {type(caught).__name__}: {caught}")
                error.__cause__ = caught
            try:
                future.get_loop().call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                break  # the event loop is gone: nobody waits any more
        if self._env is not None:
            try:
                self._env.close()
            except BaseException as caught:
                _log.warning("closing the environment raised %s: %s", type(caught).__name__, caught)

    async def _call(self, function: Callable[[], Any], timeout: float, what: str) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls.put((function, future, what))
        try:
            return await asyncio.wait_for(future, timeout)
        except TimeoutError as error:
            raise StepTimeout(f"{what} took longer than {timeout:g} s") from error

    async def reset(self, seed: int, options: dict[str, Any], timeout: float) -> tuple[str, dict[str, Any], str]:
        """Reset, making the environment first if need be.

        Returns:
            Observation, info, and the environment's instructions.

        Raises:
            EnvError: If it failed or took longer than ``timeout`` seconds.
        """

        def call() -> tuple[str, dict[str, Any], str]:
            if self._env is None:
                self._env = self._factory()
            observation, info = self._env.reset(seed=seed, options=dict(options))
            return _text(observation), dict(info), _text(instructions_of(self._env))

        result: tuple[str, dict[str, Any], str] = await self._call(call, timeout, "reset")
        return result

    async def step(self, action: str, timeout: float) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Step.

        Raises:
            EnvError: If it failed or took longer than ``timeout`` seconds.
        """

        def call() -> tuple[str, float, bool, bool, dict[str, Any]]:
            assert self._env is not None
            observation, reward, terminated, truncated, info = self._env.step(action)
            if not math.isfinite(reward):
                raise EnvError(f"the reward is {reward}")
            return _text(observation), float(reward), bool(terminated), bool(truncated), dict(info)

        result: tuple[str, float, bool, bool, dict[str, Any]] = await self._call(call, timeout, "step")
        return result

    def close(self) -> None:
        """Let the thread close the environment once it is done with what it is doing."""
        self._calls.put(None)

    def join(self, timeout: float) -> bool:
        """Wait until the environment is closed; False if it still hangs."""
        self._thread.join(timeout)
        return not self._thread.is_alive()


def _text(observation: Any) -> str:
    """The observation, without halves of surrogate pairs, which no tokenizer takes."""
    if not isinstance(observation, str):
        raise EnvError(f"an observation must be text, but this is {type(observation).__name__}")
    return observation.encode(errors="replace").decode()


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


class EnvPool:
    """Environments of one id and one set of arguments, handed out to one episode at a time."""

    def __init__(self, env_id: str, kwargs: dict[str, Any] | None = None):
        """Check the id; nothing is made yet.

        Raises:
            ConfigError: If there is no such id.
        """
        self.env_id, self.kwargs = env_id, dict(kwargs or {})
        check_id(env_id)
        self._idle: list[EnvWorker] = []
        self._closing: list[EnvWorker] = []

    def take(self) -> EnvWorker:
        """Hand out an idle environment or a fresh one."""
        return self._idle.pop() if self._idle else EnvWorker(lambda: make_env(self.env_id, self.kwargs))

    def give_back(self, worker: EnvWorker) -> None:
        """Take back an environment that works."""
        self._idle.append(worker)

    def discard(self, worker: EnvWorker) -> None:
        """Take back an environment that failed: it is closed, never handed out again."""
        worker.close()
        self._closing = [old for old in self._closing if not old.join(0)] + [worker]

    def close(self, timeout: float = 10.0) -> None:
        """Close all environments; those that still hang after ``timeout`` seconds die with the process."""
        deadline = time.monotonic() + timeout
        for worker in self._idle:
            worker.close()
        for worker in [*self._idle, *self._closing]:
            worker.join(max(0.0, deadline - time.monotonic()))
        self._idle, self._closing = [], []

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
        options: Options of ``env.reset`` in training.
        eval_options: Options of ``env.reset`` in evaluation.
    """

    id: str = "agentgym/TextWorldExpress-v0"
    kwargs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=lambda: {"split": "train"})
    eval_options: dict[str, Any] = field(default_factory=lambda: {"split": "test"})

    def pool(self) -> EnvPool:
        """Check that the environment can be made, and return a pool of it.

        Raises:
            ConfigError: For an unknown id or wrong arguments.
            MissingDependency: If its engine is not installed.
        """
        make_env(self.id, self.kwargs).close()
        return EnvPool(self.id, self.kwargs)
