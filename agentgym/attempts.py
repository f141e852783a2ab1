"""Attempts that may fail, side by side: each failure gets its type, and an error of the program ends them all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from agentgym.env_worker import StepTimeout
from agentgym.errors import EngineError, EnvError, SandboxError
from agentgym.types import Status

T = TypeVar("T")

PAUSE_S = 1.0
"""Seconds before another attempt after a sandbox failed, twice as many before the next: its daemon may come back."""


async def attempt_within(
    work: Coroutine[Any, Any, None], limit: float, policy: str, what: str = "episode"
) -> tuple[Status | None, str]:
    """Make an attempt.

    Args:
        work: What is tried.
        limit: Seconds it may take.
        policy: Name of the policy, for the message.
        what: How the attempt is called.

    Returns:
        None, or the status and message of what broke outside the policy.
    """
    try:
        async with asyncio.timeout(limit) as deadline:
            await work
        return None, ""
    except TimeoutError as error:
        if not deadline.expired():
            return Status.ENGINE_ERROR, f"the {policy} policy raised TimeoutError: {error}"
        return Status.TIMEOUT, f"the {what} took longer than {limit:g} s"
    except StepTimeout as error:
        return Status.TIMEOUT, str(error)
    except SandboxError as error:
        return Status.SANDBOX_ERROR, str(error)
    except EnvError as error:
        return Status.ENV_ERROR, str(error)
    except EngineError as error:
        return Status.ENGINE_ERROR, str(error)


async def next_done(done: asyncio.Queue[T], workers: Sequence[asyncio.Task[None]], policy: str) -> T:
    """The next result that workers put into a queue, or the error that ended one of them.

    Raises:
        EngineError: If a worker was cancelled, which only a policy can have done.
    """
    getter = asyncio.ensure_future(done.get())
    try:
        while not getter.done():
            alive = [w for w in workers if not w.done()]
            await asyncio.wait([getter, *alive], return_when=asyncio.FIRST_COMPLETED)
            for worker in workers:
                if worker.cancelled():
                    raise EngineError(f"the {policy} policy cancelled an episode")
                if worker.done() and (error := worker.exception()):
                    raise error
        return getter.result()
    finally:
        getter.cancel()


def all_of(stream: AsyncIterator[T]) -> list[T]:
    """Everything that comes out of a stream. Also works where an event loop runs already, as in a notebook."""

    async def run() -> list[T]:
        return [item async for item in stream]

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(run())
    return _run_aside(run())


def _run_aside(work: Coroutine[Any, Any, list[T]]) -> list[T]:
    """Run a coroutine in a loop on another thread, because this thread's loop is running; Ctrl-C cancels it."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def main() -> list[T]:
        task = asyncio.current_task()
        assert task is not None
        started.set_result((asyncio.get_running_loop(), task))
        return await work

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(asyncio.run, main())
        try:
            return done.result()
        except KeyboardInterrupt:
            loop, task = started.result()
            loop.call_soon_threadsafe(task.cancel)
            raise
