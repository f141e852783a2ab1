"""How full the decoder is in 7-player self-play, and how many games a CPU second gives.

One tiny model sits in all seats of Werewolf. Every forward writes one token for each game whose seat is writing.
Occupancy is the mean number of such rows over the games in flight; beside it, over the places for games (``--games``),
of which fewer and fewer are taken once the last game has begun.
"""

import argparse
import time
from typing import Any

import torch
from agentgym.envs.werewolf import raw_env

from agentgym.learner import tiny
from agentgym.learner.model import prepare
from agentgym.policies.hf import HFPolicy
from agentgym.renderer import HFTokenizer, Renderer
from agentgym.rollout import RolloutConfig, group_tasks
from agentgym.selfplay import Seat, SelfPlay


class Counting(HFPolicy):
    """Counts the games in flight at every forward: each has one live session."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.by_live: dict[int, list[int]] = {}

    def advance(self) -> bool:
        live, before = sum(session.live for session in self._sessions.values()), self.stats["sampled"]
        computed = super().advance()
        if computed:
            self.by_live.setdefault(live, []).append(self.stats["sampled"] - before)
        return computed


def make_env() -> Any:
    return raw_env(brief=True, history="new", parse_retries=2)


def sample_texts() -> list[str]:
    """What seats see and may say, for the tokenizer."""
    game, texts = make_env(), []
    game.reset(seed=0)
    while game.agents and len(texts) < 200:
        agent = game.agent_selection
        over = game.terminations[agent] or game.truncations[agent]
        texts.append(game.observe(agent))
        commands = [] if over else game.infos[agent]["admissible_commands"]
        game.step(None if over else commands[0] if commands else "I know nothing.")
    return [game.instructions, *texts]


def main() -> None:
    """Play and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--games", type=int, default=16, help="games at the same time")
    parser.add_argument("--rounds", type=int, default=2, help="so many times as many games in all")
    parser.add_argument("--tokens", type=int, default=12, help="most tokens of a turn")
    parser.add_argument("--context", default="window:2")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = tiny.train_tokenizer(sample_texts(), 400)
    model = prepare(tiny.build_model(tokenizer, 0, hidden=64, layers=2, heads=2).eval())
    policy = Counting(model, Renderer(HFTokenizer(tokenizer)), "tiny")
    config = RolloutConfig(
        max_turns=200, max_new_tokens=args.tokens, context_limit=2048, concurrency=args.games, episode_timeout=3600.0
    )
    seats = {agent: Seat(policy, trainable=True, context=args.context) for agent in make_env().possible_agents}
    table = SelfPlay(make_env, seats, config)
    wall, cpu = time.perf_counter(), time.process_time()
    games = table.collect(group_tasks(0, 0, args.games * args.rounds, 1))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    stats, turns = policy.stats, sum(game.metrics["turns"] for game in games)
    rows, in_flight = stats["sampled"] / stats["forwards"], sum(n * len(r) for n, r in policy.by_live.items())
    full = policy.by_live[args.games]
    slots, _, capacity, _ = policy.cache.keys[0].shape
    held = sum(t.numel() * t.element_size() for t in (*policy.cache.keys, *policy.cache.values))
    print(f"{len(games)} games, {turns:.0f} turns, {stats['sampled']} tokens in {stats['forwards']} forwards")
    print(f"rows a forward / games in flight: {stats['sampled'] / in_flight:.1%}")
    print(f"rows a forward / {args.games} places: {sum(full) / len(full) / args.games:.1%} while games wait to begin")
    print(f"rows a forward / {args.games} places: {rows / args.games:.1%} to the end of the last game")
    print(f"prompt tokens: {stats['prefilled']} computed, {stats['reused']} re-used")
    print(f"cache: {slots} slots of {capacity} tokens, {held / 2**20:.0f} MiB")
    print(f"{len(games) / cpu:.2f} games and {turns / cpu:.0f} turns a CPU second; {cpu:.1f} s CPU, {wall:.1f} s wall")


if __name__ == "__main__":
    main()
