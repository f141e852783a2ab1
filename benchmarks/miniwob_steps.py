"""MiniWoB steps: ours beside the miniwob package's own Selenium environment and BrowserGym, on the same tasks.

    make bench-miniwob

The peers run in a Python environment of their own, ``.venv-miniwob``; Selenium needs ``chromedriver``. Every side plays
the same tasks with the commands of our expert: clicks and typed text, translated by what the element says or is called.
A side's episodes are its own (their seeds make other ones), so the commands come from the page that is shown: each side
looks for the element by text or id. That each side's episodes end with reward above 0 is checked. Episodes at once are
threads for ours (one browser), processes for the peers, which have no other way.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-miniwob" / "bin" / "python"
TASKS = ("click-button", "click-link", "enter-text", "login-user")
QUOTED = re.compile(r'"([^"]*)"')


def plan(task: str, goal: str) -> list[tuple[str, str, str]]:
    """What is to be done: kind, the text or id of the element, and what is typed."""
    words = QUOTED.findall(goal)
    if task == "click-button":
        return [("click", words[0], "")]
    if task == "click-link":
        return [("click", words[0], "")]
    if task == "enter-text":
        return [("type", "tt", words[0]), ("click", "Submit", "")]
    return [("type", "username", words[0]), ("type", "password", words[1]), ("click", "Login", "")]


def tree() -> list[int]:
    """This process and all below it."""
    parents: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    below, found = {os.getpid()}, set()
    while below:
        found |= below
        below = {pid for pid, parent in parents.items() if parent in found} - found
    return list(found)


def pss() -> float:
    """Proportional memory of the tree, in MiB."""
    total = 0
    for pid in tree():
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def cpu() -> float:
    """CPU seconds of the tree, with the children that have ended."""
    ticks = 0
    for pid in tree():
        try:
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


class Ours:
    """Our environment."""

    def __init__(self, images: bool):
        from agentgym.envs.miniwob import MiniWoBEnv

        self.env = MiniWoBEnv("all", observation="both" if images else "text")

    def episode(self, task: str, seed: int) -> tuple[int, float]:
        _, info = self.env.reset(seed=seed, options={"task": task})
        todo, reward = plan(task, info["task"]), 0.0
        for kind, name, text in todo:
            element = next(e for e in self.env._elements if e.number and name in (e.text, e.id))
            _, reward, *_ = self.env.step(f"{kind} {element.number} {text}".strip())
        return len(todo), reward

    def close(self) -> None:
        self.env.close()


class Selenium:
    """The package's own environment, one task a browser; changing the task loads another page, as ours does."""

    def __init__(self, images: bool):
        import gymnasium as gym
        import miniwob

        os.environ.setdefault("MINIWOB_CHROME_BINARY", shutil.which("chromium") or "")
        os.environ.setdefault("MINIWOB_CHROMEDRIVER", shutil.which("chromedriver") or "")
        gym.register_envs(miniwob)
        self.gym, self.images, self.envs = gym, images, {}

    def episode(self, task: str, seed: int) -> tuple[int, float]:
        if task not in self.envs:
            self.close()
            self.envs[task] = self.gym.make(f"miniwob/{task}-v1", action_space_config="all_supported")
            self.envs[task].unwrapped.instance.record_screenshots = self.images
        env = self.envs[task]
        seen, _ = env.reset(seed=seed)
        todo, reward = plan(task, seen["utterance"]), 0.0
        for kind, name, text in todo:
            element = next(
                e for e in seen["dom_elements"] if name in (e["text"], e["id"]) and e["tag"] not in ("label",)
            )
            action = env.unwrapped.create_action("CLICK_ELEMENT", ref=element["ref"])
            if kind == "type":
                action = env.unwrapped.create_action("FOCUS_ELEMENT_AND_TYPE_TEXT", ref=element["ref"], text=text)
            seen, reward, *_ = env.step(action)
        return len(todo), reward

    def close(self) -> None:
        for env in self.envs.values():
            env.close()
        self.envs = {}


class BrowserGym:
    """BrowserGym, with the system's Chromium in the place of the one it would download."""

    def __init__(self, images: bool):
        import importlib.util

        package = Path(importlib.util.find_spec("miniwob").submodule_search_locations[0])  # type: ignore[union-attr,index]
        os.environ["MINIWOB_URL"] = (package / "html" / "miniwob").as_uri() + "/"
        self.folder = tempfile.TemporaryDirectory()
        place = Path(self.folder.name) / "chromium-1117" / "chrome-linux"
        place.mkdir(parents=True)
        (place.parent / "INSTALLATION_COMPLETE").touch()
        program = place / "chrome"
        program.write_text(f'#!/bin/sh\nexec {shutil.which("chromium")} --no-sandbox "$@"\n')
        program.chmod(0o755)
        os.environ["PLAYWRIGHT_BROWSERS_PATH"] = self.folder.name
        import browsergym.miniwob  # noqa: F401
        import gymnasium as gym

        self.gym, self.envs = gym, {}

    def episode(self, task: str, seed: int) -> tuple[int, float]:
        if task not in self.envs:
            self.close()
            self.envs[task] = self.gym.make(f"browsergym/miniwob.{task}")
        env = self.envs[task]
        seen, _ = env.reset(seed=seed)
        todo, reward = plan(task, seen["goal"]), 0.0
        for kind, name, text in todo:
            bid = self.find(seen, name)
            seen, reward, *_ = env.step(f"fill({bid!r}, {text!r})" if kind == "type" else f"click({bid!r})")
        return len(todo), reward

    @staticmethod
    def find(seen: dict[str, Any], name: str) -> str:
        """The id of the innermost element with this text or id."""
        strings, found = seen["dom_object"]["strings"], ""
        for document in seen["dom_object"]["documents"]:
            nodes = document["nodes"]
            for index, pairs in enumerate(nodes["attributes"]):
                values = [strings[i] for i in pairs]
                attributes = dict(zip(values[::2], values[1::2], strict=True))
                children = [i for i, parent in enumerate(nodes["parentIndex"]) if parent == index]
                texts = {strings[nodes["nodeValue"][i]].strip() for i in children if nodes["nodeValue"][i] >= 0}
                if attributes.get("id") == name or name in texts:
                    found = attributes.get("bid", found)
        return found

    def close(self) -> None:
        for env in self.envs.values():
            env.close()
        self.envs = {}


SIDES: dict[str, Callable[[bool], Any]] = {"ours": Ours, "selenium": Selenium, "browsergym": BrowserGym}


def run(side: str, images: bool, task_names: list[str], episodes: int, workers: int) -> dict[str, float]:
    """Play episodes with so many workers at once; the first episode of each task warms up."""
    players = [SIDES[side](images) for _ in range(workers)]
    spent = {"steps": 0, "seconds": 0.0, "cpu": 0.0, "wins": 0, "played": 0}
    for task in task_names:
        base = [player.episode(task, 0) for player in players]
        assert base
        counts: list[tuple[int, float]] = []

        def work(player: Any, first: int, task: str = task, counts: list[tuple[int, float]] = counts) -> None:
            counts.extend(player.episode(task, first + k) for k in range(episodes))

        threads = [threading.Thread(target=work, args=(p, 1 + 1000 * k)) for k, p in enumerate(players)]
        before, started = cpu(), time.perf_counter()
        if workers == 1:  # Playwright wants the thread that made it
            work(players[0], 1)
        else:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        spent["seconds"] += time.perf_counter() - started
        spent["cpu"] += cpu() - before
        spent["steps"] += sum(steps for steps, _ in counts)
        spent["wins"] += sum(reward > 0 for _, reward in counts)
        spent["played"] += len(counts)
    spent["pss"] = pss()
    for player in players:
        player.close()
    return spent


def serve(side: str, images: bool, episodes: int, workers: int) -> None:
    """Measure a side in this process and print what was found."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the packages print is no answer
    found = run(side, images, list(TASKS), episodes, workers)
    print(json.dumps(found), file=answers, flush=True)


def measure(side: str, images: bool, episodes: int, workers: int) -> dict[str, float]:
    """Play in processes of their own: ours in one, a peer in one for each episode at once."""
    python = sys.executable if side == "ours" else str(PEERS)
    count, threads = (1, workers) if side == "ours" else (workers, 1)
    command = [python, __file__, "--serve", side, "--episodes", str(episodes), "--workers", str(threads)]
    command += ["--images"] * images
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    found = [json.loads(child.communicate()[0]) for child in children]
    total = {key: sum(one[key] for one in found) for key in found[0]}
    total["rate"] = sum(one["steps"] / one["seconds"] for one in found)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=20, help="episodes of a task and worker")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 8], help="episodes at once")
    parser.add_argument("--peers", nargs="*", default=["selenium", "browsergym"])
    parser.add_argument("--images", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--serve", choices=tuple(SIDES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.images, args.episodes, args.workers[0])
        return
    if not PEERS.exists() or not shutil.which("chromedriver"):
        sys.exit(
            f"error: {PEERS} and chromedriver are needed: run `make bench-miniwob`, apt-get install chromium-driver"
        )
    print(f"{', '.join(TASKS)}; load {os.getloadavg()[0]:.1f}")
    print(f"{'':34s}{'steps/s':>9s}{'ratio':>7s}{'CPU ms/step':>13s}{'ratio':>7s}{'PSS MiB':>9s}{'won':>9s}")
    memory: dict[tuple[bool, int], float] = {}
    for images in (False, True):
        for workers in args.workers:
            mine = measure("ours", images, args.episodes, workers)
            memory[images, workers] = mine["pss"]
            rows = {"ours": mine}
            for peer in args.peers:
                if workers == 1 or peer == "selenium":
                    few = args.episodes if peer == "selenium" else 2
                    rows[peer] = measure(peer, images, few, workers)
            for side, row in rows.items():
                name = f"{side}, {workers} at once, {'screenshots' if images else 'text'}"
                cpu = [1e3 * r["cpu"] / r["steps"] for r in (row, mine)]
                ratios = mine["rate"] / row["rate"], cpu[0] / cpu[1]
                won = f"{row['wins']:.0f}/{row['played']:.0f}"
                print(
                    f"{name:34s}{row['rate']:9.1f}{ratios[0]:7.1f}{cpu[0]:13.1f}{ratios[1]:7.1f}{row['pss']:9.0f}{won:>9s}"
                )
                sys.stdout.flush()
    for images in (False, True):
        counts = sorted(workers for drawn, workers in memory if drawn == images)
        if len(counts) > 1:
            extra = (memory[images, counts[-1]] - memory[images, counts[0]]) / (counts[-1] - counts[0])
            print(f"memory of one more episode at once, {'screenshots' if images else 'text'}: {extra:.1f} MiB")


if __name__ == "__main__":
    main()
