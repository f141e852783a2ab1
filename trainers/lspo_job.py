"""What all phases of an LSPO run work with: model, run folder, games, and what earlier phases left on disk."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from agentgym.envs.werewolf import raw_env
from agentgym.envs.werewolf_game import State
from agentgym.envs.werewolf_rules import ROLES, Rules
from agentgym.trainers.lspo_config import Config
from agentgym.trainers.lspo_pairs import Ear, Record
from agentgym.trainers.lspo_play import Mode, StrategicPolicy, Strategist, examples

from agentgym import latents, latents_file, seeding, store
from agentgym.cfr_search import Game as AbstractGame
from agentgym.deep_cfr import DeepCFR
from agentgym.embeddings import make_encoder
from agentgym.learner import checkpoint
from agentgym.learner.setup import open_model
from agentgym.policies.base import Policy
from agentgym.rollout import check_context, group_tasks
from agentgym.run import Run
from agentgym.selfplay import Game, Seat, SelfPlay
from agentgym.training import open_policy


class Job:
    """What all phases work with; leave the ``with`` block and servers that were started end.

    Attributes:
        env: An environment like those that are played, to ask for its settings.
        policy: Writes with ``model``, which is trained in place.
    """

    def __init__(self, cfg: Config, out: str | Path, resume: bool):
        """Open model and run folder.

        Raises:
            ConfigError: If one of them cannot be opened.
        """
        self.cfg, self.env = cfg, raw_env(**cfg.game)
        self.encoder = make_encoder(cfg.lspo.encoder)
        self.model, self.tokenizer, renderer = open_model(cfg.model, cfg.seed, None)
        with ExitStack() as stack:
            self.policy = stack.enter_context(
                open_policy(self.model, self.tokenizer, renderer, cfg.decode, cfg.rollout, Path(out), "lspo")
            )
            check_context(self.policy, cfg.rollout)
            self.run = Run(out, cfg, resume)
            self.run.tokens(self.tokenizer)
            self._closing = stack.pop_all()
        self._weights = 0

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def folder(self, iteration: int) -> Path:
        """Where the phases of an iteration write."""
        return self.run.dir / f"iteration_{iteration}"

    def take_up(self, iteration: int) -> None:
        """Give the model the weights of π_i."""
        if iteration != self._weights:
            checkpoint.restore(self._checkpoint(iteration), self.model)
        self._weights = iteration

    def become(self, iteration: int) -> None:
        """Play as π_i."""
        self.take_up(iteration)
        self.policy.weights_changed(iteration)

    def rest(self) -> None:
        """Nobody plays until `become`."""
        if self.cfg.decode.backend == "vllm":
            self.policy.rest()

    def keep(self, iteration: int, state: dict[str, Any]) -> None:
        """Save the weights as π_i."""
        checkpoint.save(
            self._checkpoint(iteration), self.model, self.tokenizer, state, keep=self.cfg.lspo.iterations + 1
        )
        self._weights = iteration

    def _checkpoint(self, iteration: int) -> Path:
        return self.run.dir / "checkpoints" / f"step_{iteration:05d}"

    def play(self, seats: Mapping[str, Seat], sides: tuple[str, str], seed: int, step: int, games: range) -> list[Game]:
        """Play games; the Werewolves have the first of the seats named, the village the second."""

        def assign(_: object, infos: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
            return {agent: sides[info["role"] != ROLES[0]] for agent, info in infos.items()}

        played = SelfPlay(lambda: raw_env(**self.cfg.game), seats, self.cfg.rollout, assign)
        return played.collect(group_tasks(seed, step, len(games), 1, games.start))

    def rules(self, found: latents.Latents) -> Rules:
        """The abstract game."""
        own = self.env.rules
        return Rules(
            *(own.n, own.parity, own.rewards, found.counts, found.codebook, own.abstain, own.max_rounds, found.stances)
        )

    def latents(self, iteration: int) -> latents.Latents:
        """What speeches are in an iteration."""
        return latents_file.load(self.folder(iteration) / "latents", self.encoder)

    def games(self, iteration: int) -> list[Record]:
        """The games of an iteration."""
        read = [t for file in sorted(self.folder(iteration).glob("games_*.jsonl")) for t in store.read(file)]
        n = self.env.rules.n
        return [Record.of(read[at : at + n]) for at in range(0, len(read), n)]

    def solver(self, iteration: int, found: latents.Latents) -> DeepCFR:
        """Deep CFR on the abstract game, as far as it has come."""
        rules = self.rules(found)
        game = AbstractGame(State(rules), rules.n, rules.actions, rules.width, len(ROLES), _role)
        made = DeepCFR(game, self.cfg.cfr, seeding.env_seed(self.cfg.seed, iteration, 0))
        made.resume(self.folder(iteration) / "cfr")
        return made

    def player(self, policy: Policy, iteration: int, mode: Mode) -> StrategicPolicy:
        """A model with the strategy of an iteration."""
        known = self.latents(iteration)
        rules, solver = self.rules(known), self.solver(iteration, known)
        strategist = Strategist(solver, rules, Ear(known, rules.n))
        return StrategicPolicy(policy, strategist, mode, self.cfg.lspo.candidates, examples(known, rules.n))


def _role(state: Any, seat: int) -> int:
    return int(state.roles[seat])
