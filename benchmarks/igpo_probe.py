"""What the information-gain probe costs: CPU time of IGPO's step beside GRPO's, and beside a naive probe.

A search agent's episodes: a question, `--turns` replies of `--reply` tokens, results of some 100 tokens between them.
Each round plays the same groups without and with probes, makes GRPO's and IGPO's update on the same trajectories, and
scores every turn once more with a full forward that re-reads its context. The scores of both kinds must agree to 1e-4.
Printed are medians over the rounds.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import torch
from agentgym.trainers import grpo, igpo

from agentgym.env_worker import EnvPool
from agentgym.learner import tiny
from agentgym.learner.learner import Learner
from agentgym.learner.model import frozen_copy, prepare
from agentgym.policies.hf import HFPolicy
from agentgym.policies.probe import gold_answer, make_probe
from agentgym.renderer import HFTokenizer, Renderer
from agentgym.rollout import Rollout, group_tasks
from agentgym.spaces import UnicodeText
from agentgym.types import Group

CITIES = ("Reykjavik", "Port Moresby", "Ulaanbaatar", "Ouagadougou", "San Salvador")
TEXT = (
    "{i}. Airport {n}\n   https://example.org/{n}\n   The airport {n} lies near the city of {c}, which had {n} "
    "thousand inhabitants in the last census; the country borders on two others and its currency is the crown.\n"
)
SAMPLE = "Question: what is the capital of the country in which the airport {n} lies?\n"


class Search(gym.Env[str, str]):
    """Gives results for any reply; the reward of an episode is drawn."""

    instructions = "Answer the question. You may search as often as you need; every reply has one of two shapes."

    def __init__(self, turns: int = 4):
        """End after ``turns`` replies."""
        self.turns = turns
        self.observation_space = self.action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Ask."""
        super().reset(seed=seed)
        self.left = self.turns
        number, city = int(self.np_random.integers(1000)), str(self.np_random.choice(CITIES))
        return SAMPLE.format(n=number), {"answers": [city]}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Show results."""
        self.left -= 1
        rows = [(i, int(self.np_random.integers(1000)), str(self.np_random.choice(CITIES))) for i in (1, 2)]
        text = "".join(TEXT.format(i=i, n=n, c=c) for i, n, c in rows)
        reward = (sum(action.encode()) % 7) / 7 if not self.left else 0.0
        return text, reward, not self.left, False, {}


gym.register("bench/Search-v0", entry_point=lambda **kwargs: Search(**kwargs), disable_env_checker=True)


def attention_ratio(lengths: Sequence[int]) -> float:
    """How much more attention a probe costs that reads every context anew: Σ L_t² / max L²."""
    return sum(n * n for n in lengths) / max(lengths) ** 2


def cpu(work: Callable[[], Any]) -> tuple[Any, float]:
    """What work gives, and the CPU seconds it took."""
    started = time.process_time()
    return work(), time.process_time() - started


def naive_scores(policy: HFPolicy, groups: Sequence[Group], wrapper: str) -> list[float]:
    """The probe of every turn by a forward over its whole context."""
    found = []
    for group in groups:
        _, info = Search().reset(seed=group.env_seed)
        probe = make_probe(policy.renderer, gold_answer(info, "bench/Search-v0"), wrapper)
        for trajectory in group.trajectories:
            for turn in trajectory.turns:
                prompt = trajectory.segments[turn.segment].ids[: turn.start]
                logps = asyncio.run(policy.score([*prompt, *probe.ids], len(prompt) + probe.start))
                found.append(sum(logps) / len(logps))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--reply", type=int, default=40, help="tokens of a reply")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    wrapper = igpo.Igpo().wrapper
    texts = [TEXT.format(i=1, n=n, c=c) + SAMPLE.format(n=n) + wrapper for n, c in enumerate(CITIES)]
    tokenizer = tiny.train_tokenizer([*texts, Search.instructions], 1024)
    model = prepare(tiny.build_model(tokenizer, 0, args.hidden, args.layers).eval())
    policy = HFPolicy(model, Renderer(HFTokenizer(tokenizer)))
    values = {
        "groups": args.groups,
        "group_size": args.size,
        "rollout": {"max_turns": args.turns, "max_new_tokens": args.reply, "parse_limit": 99},
    }
    cfg = igpo.make_config(values)
    learner, loss = Learner(model, cfg.optim), grpo.make_loss(cfg.algo, frozen_copy(model), 1.0)
    times: dict[str, list[float]] = {}

    def measured(name: str, work: Callable[[], Any]) -> Any:
        result, seconds = cpu(work)
        times.setdefault(name, []).append(seconds)
        return result

    def grpo_update(groups: list[Group]) -> None:
        grpo.update(cfg, learner, groups, grpo.assign_advantages(cfg.algo, groups), loss)

    def igpo_update(groups: list[Group]) -> None:
        grpo.update(cfg, learner, groups, igpo.assign_advantages(cfg, groups)[0], loss)

    groups: list[Group] = []
    with EnvPool("bench/Search-v0", {"turns": args.turns}) as pool:
        rollout = Rollout(pool, policy, cfg.rollout)
        for number in range(args.rounds + 1):
            if number == 1:
                times.clear()  # the first round warms up
            tasks = group_tasks(0, number, args.groups, args.size)
            kinds = {"rollout": None, "rollout with probes": wrapper}
            for name in sorted(kinds, reverse=bool(number % 2)):  # neither is always first
                policy.weights_changed(number)
                rollout.wrapper = kinds[name]
                played = measured(name, lambda tasks=tasks: rollout.collect(tasks))
                groups = played if kinds[name] else groups
            turns = [turn for g in groups for t in g.trajectories for turn in t.turns]
            naive = measured("naive probes", lambda groups=groups: naive_scores(policy, groups, wrapper))
            apart = max(abs(turn.probe - score) for turn, score in zip(turns, naive, strict=True))
            assert apart < 1e-4, f"cached and naive scores are {apart} apart"
            measured("GRPO update", lambda groups=groups: grpo_update(groups))
            measured("IGPO update", lambda groups=groups: igpo_update(groups))

    middle = {name: statistics.median(row) for name, row in times.items()}
    extras = sorted(b - a for a, b in zip(times["rollout"], times["rollout with probes"], strict=True))
    extra = statistics.median(extras)
    plain, update = middle["rollout"] + middle["GRPO update"], middle["IGPO update"]
    lengths = [turn.start for turn in groups[0].trajectories[0].turns]
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{len(turns)} turns a step, contexts of {lengths} tokens, {size:.1f} M parameters, {args.threads} thread(s)")
    for name, seconds in middle.items():
        print(f"{name:>22}: {seconds:7.3f} s CPU")
    naive_s = middle["naive probes"]
    spread = f"{extras[0]:.3f} to {extras[-1]:.3f}"
    print(f"cached probes cost {extra:.3f} s ({spread}), {extra / (plain + extra):.1%} of a step")
    print(f" naive probes cost {naive_s:.3f} s, {naive_s / (plain + naive_s):.1%} of a step")
    print(f"    ratio: cached probes {naive_s / extra:.1f}x cheaper than naive ones")
    print(f"    ratio: IGPO's step without the probe {(middle['rollout'] + update) / plain:.3f} of GRPO's")
    print(f"    attention of a pass a turn: {attention_ratio(lengths):.2f} of one pass")


if __name__ == "__main__":
    main()
