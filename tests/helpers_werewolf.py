"""Games of Werewolf between scripted players, with a trajectory for every seat."""

from __future__ import annotations

from agentgym.envs.werewolf import raw_env
from agentgym.envs.werewolf_players import PlayerPolicy

from agentgym.rollout import RolloutConfig, group_tasks
from agentgym.selfplay import Seat, SelfPlay


def play_werewolf(seed=0, wolves="scripted", village="naive", **settings):
    """One game; the Werewolves are ``model``, the village is ``opponent``.

    Returns:
        The game, and the environment as the game has left it.
    """
    made = []

    def make_env():
        made.append(raw_env(history="new", **settings))
        return made[-1]

    brief = settings.get("brief", False)
    seats = {"model": Seat(PlayerPolicy(wolves, brief), True), "opponent": Seat(PlayerPolicy(village, brief))}
    seats["model"].policy.version = 0
    table = SelfPlay(make_env, seats, RolloutConfig(max_turns=60, context_limit=50_000, concurrency=1), _sides)
    [game] = table.collect(group_tasks(seed, 0, 1, 1))
    return game, made[-1]


def _sides(task, infos):
    return {agent: "model" if info["role"] == "Werewolf" else "opponent" for agent, info in infos.items()}
