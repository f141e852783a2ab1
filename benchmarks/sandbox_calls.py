"""Sandbox calls, boxes and episodes beside the docker SDK, inspect_ai and llm-sandbox.

All on one image and one daemon (``DOCKER_HOST``), in one run: the sides take turns, every call computes a number that
is checked, and every peer is timed around its own method, in an interpreter of its own (``sandbox_peers.py``). A peer
that does not run here is named with its reason and left out. ``make bench-sandbox`` prepares what this needs.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from agentgym.sandboxes import open_sandbox
from agentgym.sandboxes.base import Result, Sandbox
from agentgym.sandboxes.image import full_name
from agentgym.sandboxes.pool import SandboxPool

CALLS_AN_EPISODE = 5
EPISODES_AT_ONCE = 8
MANY = 32

Times = dict[str, list[float]]


class PeerFailed(Exception):
    """A peer that does not run here."""


class Peers:
    """The process of ``sandbox_peers.py``."""

    def __init__(self, python: str, image: str):
        script = Path(__file__).with_name("sandbox_peers.py")
        self.process = subprocess.Popen(
            [python, str(script), image],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, peer: str, op: str, code: str = "") -> tuple[float, str]:
        """Seconds and output of one operation."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"peer": peer, "op": op, "code": code}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline() or '{"error": "its process ended"}')
        if "error" in answer:
            raise PeerFailed(answer["error"])
        return answer["seconds"], answer["output"]

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


def timed(call: Callable[[], Result]) -> tuple[float, str]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result.stdout


def check(name: str, output: str, expected: int) -> None:
    if output.strip() != str(expected):
        raise SystemExit(f"{name}: {expected} was to be computed, the output is {output!r}")


def measure_calls(peers: Peers, available: list[str], rounds: int) -> Times:
    """A call that computes and prints a number, in turn on every side."""
    times: Times = defaultdict(list)
    with open_sandbox("docker") as box:
        ours: dict[str, Callable[[int], tuple[float, str]]] = {
            "session call": lambda n: timed(lambda: box.python(f"print({n} * {n})")),
            "fresh call": lambda n: timed(lambda: box.python(f"print({n} * {n})", fresh=True)),
            "bash call": lambda n: timed(lambda: box.exec(f"echo $(({n} * {n}))")),
        }
        for peer in available:
            peers.ask(peer, "open")
        for n in range(-2, rounds):
            for name, call in ours.items():
                for k in range(10):
                    seconds, output = call(10 * n + k)
                    check(name, output, (10 * n + k) ** 2)
                    times[name] += [seconds] * (n >= 0)
            for peer in available:
                code = f"echo $(({n} * {n}))" if peer.endswith("bash") else f"print({n} * {n})"
                seconds, output = peers.ask(peer, "call", code)
                check(peer, output, n * n)
                times[peer] += [seconds] * (n >= 0)
        for peer in available:
            peers.ask(peer, "close")
    return times


@contextlib.contextmanager
def docker_run(image: str, *program: str) -> Iterator[float]:
    """``docker run -d`` with nothing but the image and the program; seconds until it returns."""
    start = time.perf_counter()
    run = subprocess.run(["docker", "run", "-d", image, *program], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    try:
        yield seconds
    finally:
        subprocess.run(["docker", "rm", "-f", run.stdout.strip()], check=True, capture_output=True)


def measure_opens(peers: Peers, available: list[str], image: str, rounds: int) -> Times:
    """A box until it is open; ours is open when its worker has answered, and is asked for a number here."""
    times: Times = defaultdict(list)
    for n in range(-1, rounds):
        start = time.perf_counter()
        with open_sandbox("docker") as box:
            seconds = time.perf_counter() - start
            check("open", box.python(f"print({n} * {n})").stdout, n * n)
            times["open"] += [seconds] * (n >= 0)
        with docker_run(image, "sleep", "infinity") as seconds:
            times["docker run"] += [seconds] * (n >= 0)
        for peer in available:
            if peer.endswith("bash"):
                continue
            seconds, _ = peers.ask(peer, "open")
            times[f"{peer} open"] += [seconds] * (n >= 0)
            peers.ask(peer, "close")
    return times


def measure_takes(rounds: int) -> Times:
    """Taking a box from a warm pool."""
    times: Times = defaultdict(list)
    with SandboxPool(lambda: open_sandbox("docker"), minimum=2, maximum=2) as pool:
        warm_up(pool, 2)
        for n in range(-2, rounds):
            start = time.perf_counter()
            box = pool.take()
            seconds = time.perf_counter() - start
            times["pool take"] += [seconds] * (n >= 0)
            check("pool take", box.python(f"print({n} * {n})").stdout, n * n)
            pool.give_back(box)
            time.sleep(0.02)  # as an episode leaves it time to make the box clean
    return times


def warm_up(pool: SandboxPool, count: int) -> None:
    while pool.opened < count:
        time.sleep(0.05)


def in_threads(count: int, seconds: float, work: Callable[[int, Callable[[], bool]], int]) -> float:
    """Units of work a second of ``count`` threads, each of which works until it is told that time is up."""
    done = [0] * count
    errors: list[BaseException] = []
    end = 0.0
    ready = threading.Barrier(count + 1)

    def run(k: int) -> None:
        try:
            ready.wait()
            done[k] = work(k, lambda: time.perf_counter() >= end)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    start = time.perf_counter()
    end = start + seconds
    ready.wait()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(done) / (time.perf_counter() - start)


def episodes(reuse: bool, seconds: float) -> float:
    """Episodes a second, of five session calls each, in boxes of a pool that are used again or not."""
    count = EPISODES_AT_ONCE
    with SandboxPool(lambda: open_sandbox("docker"), count, count, "reset" if reuse else "reopen") as pool:
        warm_up(pool, count)

        def work(k: int, over: Callable[[], bool]) -> int:
            count = 0
            while not over():
                box = pool.take()
                for n in range(CALLS_AN_EPISODE):
                    check("episode", box.python(f"print({n} + {k})").stdout, n + k)
                pool.give_back(box)
                count += 1
            return count

        return in_threads(EPISODES_AT_ONCE, seconds, work)


def many_boxes(seconds: float) -> float:
    """Session calls a second over 32 boxes that are open at once."""
    boxes: list[Sandbox] = []
    try:
        for _ in range(MANY):
            boxes.append(open_sandbox("docker"))

        def work(k: int, over: Callable[[], bool]) -> int:
            count = 0
            while not over():
                check("32 boxes", boxes[k].python(f"print({count} * {k})").stdout, count * k)
                count += 1
            return count

        in_threads(MANY, 0.5, work)
        return in_threads(MANY, seconds, work)
    finally:
        for box in boxes:
            box.close()


def show(times: Times) -> dict[str, float]:
    """Print medians, least and 90th percentile in milliseconds; the medians."""
    for name, values in times.items():
        p90 = statistics.quantiles(values, n=10)[-1]
        median = statistics.median(values)
        print(
            f"{name:20s} {1e3 * median:9.2f} ms   min {1e3 * min(values):8.2f}   p90 {1e3 * p90:8.2f}"
            f"   n {len(values)}",
            flush=True,
        )
    return {name: statistics.median(values) for name, values in times.items()}


def bar(name: str, value: float, wanted: float, unit: str, least: bool = True) -> None:
    met = value >= wanted if least else value <= wanted
    relation = "at least" if least else "at most"
    print(f"{name:44s} {value:9.2f}{unit:4s} wanted {relation} {wanted:g}{unit}: {'yes' if met else 'NO'}", flush=True)


def load() -> str:
    return "load " + " ".join(f"{x:.1f}" for x in os.getloadavg())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="calls of each peer; ours make ten times as many")
    parser.add_argument("--opens", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each throughput measurement")
    parser.add_argument("--peers", default=".venv-peers/bin/python", help="interpreter that has the peers")
    args = parser.parse_args()
    image = full_name("base")
    engine = subprocess.run(
        ["docker", "version", "--format", "{{.Server.Version}}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    print(f"docker {engine}, image {image}, {os.cpu_count()} cores, {load()}")

    peers = Peers(args.peers, image)
    try:
        available = []
        for peer in ("exec_run", "exec_run bash", "llm-sandbox", "inspect_ai"):
            try:
                peers.ask(peer, "open")
                peers.ask(peer, "close")
                available.append(peer)
            except PeerFailed as error:
                print(f"without {peer}: {error}")
        found = show(measure_calls(peers, available, args.rounds))
        print(load())
        found |= show(measure_opens(peers, available, image, args.opens))
        print(load())
    finally:
        peers.close()
    found |= show(measure_takes(args.rounds * 5))
    single = episodes(False, args.seconds)
    recycled = episodes(True, args.seconds)
    calls = many_boxes(args.seconds)
    print(f"episodes a second: single-use {single:.1f}, recycled {recycled:.1f}; {load()}")

    for call, peer, wanted in (
        ("session call", "exec_run", 100.0),
        ("fresh call", "exec_run", 15.0),
        ("fresh call", "inspect_ai", 25.0),
        ("fresh call", "llm-sandbox", 25.0),
    ):
        if peer in available:
            bar(f"{call}, times faster than {peer}", found[peer] / found[call], wanted, "x")
    bar("open / docker run", found["open"] / found["docker run"], 1.2, "x", least=False)
    bar("taking a box from the pool", 1e3 * found["pool take"], 5, " ms", least=False)
    bar("recycled / single-use episodes", recycled / single, 10, "x")
    bar(f"session calls a second over {MANY} boxes", calls, 2000, "/s")


if __name__ == "__main__":
    main()
