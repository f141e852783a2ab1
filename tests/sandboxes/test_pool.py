"""The warm pool: what it hands out is clean and alive, whatever came back."""

from __future__ import annotations

import functools
import threading
import time

import pytest
from agentgym.sandboxes import open_sandbox
from agentgym.sandboxes.pool import SandboxPool

from agentgym.errors import ConfigError, SandboxError

pytestmark = pytest.mark.bwrap


@pytest.fixture
def open_box(bubblewrap):
    return functools.partial(open_sandbox, "bubblewrap")


def test_boxes_come_back_clean(open_box):
    with SandboxPool(open_box, minimum=1, maximum=1) as pool:
        with pool.box() as first:
            first.python("x = 1")
            first.put("left", "behind")
        with pool.box() as second:
            assert second is first
            assert second.list() == []
            assert second.python("'x' in globals()").stdout == "False\n"
        assert (pool.opened, pool.discarded) == (1, 0)


def test_reopen_gives_every_taker_a_new_box(open_box):
    with SandboxPool(open_box, maximum=1, recycle="reopen") as pool:
        seen = []
        for _ in range(3):
            with pool.box() as box:
                seen.append(box)
        assert len(set(map(id, seen))) == 3
    assert [box.alive for box in seen] == [False] * 3


def test_a_box_is_replaced_after_its_uses(open_box):
    with SandboxPool(open_box, maximum=1, max_uses=2) as pool:
        seen = []
        for _ in range(4):
            with pool.box() as box:
                seen.append(box)
        assert seen[0] is seen[1]
        assert seen[2] is seen[3]
        assert seen[0] is not seen[2]


def test_a_dead_box_is_never_handed_out(open_box):
    with SandboxPool(open_box, minimum=1, maximum=1) as pool:
        box = pool.take()
        pool.give_back(box)
        while not pool._ready:
            time.sleep(0.01)
        box.close()  # it dies while it waits
        with pool.box() as other:
            assert other is not box
            assert other.exec("echo hi").stdout == "hi\n"
        assert pool.discarded == 1


def test_a_dirty_box_is_never_handed_out(open_box):
    with SandboxPool(open_box, minimum=1, maximum=1) as pool:
        with pool.box() as box:
            code = "import ctypes; ctypes.CDLL(None).shmget(1234, 100, 0o1666)"
            assert box.python(code).exit_code == 0
            assert len(box.exec("cat /proc/sysvipc/shm").stdout.splitlines()) == 2
        with pool.box() as other:
            assert other is not box
            assert len(other.exec("cat /proc/sysvipc/shm").stdout.splitlines()) == 1


def test_takers_wait_for_their_turn_and_give_up_in_time(open_box):
    with SandboxPool(open_box, minimum=0, maximum=1) as pool:
        box = pool.take()
        started = time.monotonic()
        with pytest.raises(SandboxError, match="none of the 1 boxes"):
            pool.take(timeout=0.3)
        assert 0.25 < time.monotonic() - started < 3
        threading.Timer(0.2, pool.give_back, [box]).start()
        assert pool.take(timeout=10) is box
        pool.give_back(box)


def test_many_takers_share_few_boxes(open_box):
    with SandboxPool(open_box, minimum=1, maximum=3) as pool:
        inside, most, lock = 0, 0, threading.Lock()

        def episode(number):
            nonlocal inside, most
            for _ in range(5):
                with pool.box() as box:
                    with lock:
                        inside += 1
                        most = max(most, inside)
                    assert box.list() == []
                    box.put("mine", str(number))
                    assert box.python(f"x = {number}; open('mine').read()").stdout == f"'{number}'\n"
                    with lock:
                        inside -= 1

        threads = [threading.Thread(target=episode, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 3
        assert pool.opened == 3


def test_errors_of_opening_reach_the_taker_and_heal(open_box):
    failing = True

    def sometimes():
        if failing:
            raise SandboxError("no more room")
        return open_box()

    with SandboxPool(sometimes, minimum=0, maximum=2) as pool:
        with pytest.raises(SandboxError, match="no more room"):
            pool.take(timeout=20)
        failing = False
        with pool.box(timeout=20) as box:
            assert box.exec("echo hi").stdout == "hi\n"


def test_closing(open_box):
    pool = SandboxPool(open_box, minimum=2, maximum=2)
    taken = pool.take()
    pool.close()
    pool.close()
    assert taken.alive
    with pytest.raises(SandboxError, match="closed"):
        pool.take()
    pool.give_back(taken)
    assert not taken.alive


def test_bad_arguments(open_box):
    for arguments in ({"minimum": 2, "maximum": 1}, {"minimum": -1}, {"maximum": 0}, {"max_uses": 0}):
        with pytest.raises(ConfigError, match="sandbox pool"):
            SandboxPool(open_box, **arguments)
    with pytest.raises(ConfigError, match="did you mean reset"):
        SandboxPool(open_box, recycle="rest")
    with SandboxPool(open_box) as pool:
        box = pool.take()
        pool.give_back(box)
        with pytest.raises(ConfigError, match="given back before"):
            pool.give_back(box)
