"""No test leaves a thread behind."""

import contextlib
import threading
import time


@contextlib.contextmanager
def none_left(forget, release):
    """Forget what happened before, and afterwards let everything that hangs go on and see the threads end."""
    forget()
    before = threading.active_count()
    yield
    release.set()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.005)
    assert threading.active_count() <= before
