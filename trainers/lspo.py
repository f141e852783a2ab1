"""LSPO: latent space policy optimisation, iterated, for Werewolf.

For i = 1..I, with the language model π_0 at the start:

    D_i    games of π_{i−1} against itself; N candidates for every speech, one of them at random is said      collect
    c(y)   = argmin_j ‖e(y) − μ_j‖², k_ρ(i) = k_ρ(1) + i − 1 latent strategies of role ρ                       cluster
    σ_i    = Deep CFR on the game in which a speech is its latent strategy; V_ρ its regrets                    solve
    P_i    = pairs (y_w, y_l) of candidates with the highest and the lowest V_ρ(x)[c(y)]                       prefer
    π_i    = argmin −E log σ(β [log π(y_w|x) − log π_{i−1}(y_w|x) − log π(y_l|x) + log π_{i−1}(y_l|x)])        tune

| equation    | function                                               |
|-------------|--------------------------------------------------------|
| D_i         | `selfplay`, `policies.candidates`                      |
| c, k_ρ(i)   | `latents.fit`, `latents.cluster_counts`                |
| σ_i, V_ρ    | `deep_cfr.DeepCFR` over `envs.werewolf_game`           |
| P_i         | `lspo_pairs.Judge`                                     |
| π_i         | `lspo_pairs.make_loss`                                 |

Source: LSPO (2502.04686), whose code is not public. Phases write what they made into ``OUT/iteration_I`` and are not
done again. What the paper leaves open, and how it is filled here: docs/algorithms/lspo.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from agentgym.envs.werewolf import raw_env
from agentgym.envs.werewolf_game import State
from agentgym.envs.werewolf_players import PLAYERS, PlayerPolicy
from agentgym.envs.werewolf_rules import ROLES, Rules
from agentgym.trainers import lspo_pairs
from agentgym.trainers.lspo_pairs import Ear, Judge, Pair, PairRule, Prefer, Record
from agentgym.trainers.lspo_play import Mode, StrategicPolicy

from agentgym import latents, latents_file, seeding, store
from agentgym.cfr_search import Game as AbstractGame
from agentgym.config import build, overlay
from agentgym.deep_cfr import DeepCFR, DeepCFRConfig
from agentgym.embeddings import make_encoder
from agentgym.errors import ConfigError, unknown
from agentgym.evaluate import Evaluation, summarise
from agentgym.learner import checkpoint
from agentgym.learner.learner import Learner, OptimConfig
from agentgym.learner.pack import pack
from agentgym.learner.setup import ModelConfig, open_model
from agentgym.policies.base import Policy
from agentgym.policies.candidates import CandidatePolicy
from agentgym.policies.hf import HFPolicy
from agentgym.rollout import RolloutConfig, check_context, group_tasks
from agentgym.run import Run, progress, shielded
from agentgym.selfplay import Game, Seat, SelfPlay
from agentgym.types import Trajectory

PHASES = ("collect", "cluster", "solve", "prefer", "tune", "measure")
_SHOWN = 4
_ROUNDS = 4
"""Games in a file, for each that is played at a time: the decoder runs empty at the end of every file."""
_SAVE_EVERY = 5
"""Iterations of CFR between two saves, which hold all reservoirs."""


@dataclass
class Lspo:
    """The algorithm; the defaults are the paper's where it names them.

    Attributes:
        iterations: I.
        games: Games of self-play an iteration.
        candidates: N.
        prompted: Ask for candidates that differ (for a pretrained model), instead of sampling them independently.
        latents: k_ρ(1) of Werewolf, Seer, Doctor, Villager.
        public_codes: Codes as which all hear what others say; more make the abstract game tell more.
        encoder: e, see `agentgym.embeddings.make_encoder`.
        cfr_iterations: Iterations of Deep CFR.
        prefer: ``high_advantage``, or ``low_regret`` for the paper's sentence.
        pairs: ``extremes``: one pair a speech; ``all``: every two candidates of different strategies.
        min_gap: Pairs whose regrets differ by less are left out.
        beta: β.
        epochs: Passes over the pairs.
        batch: Pairs of an optimizer step.
    """

    iterations: int = 3
    games: int = 1000
    candidates: int = 3
    prompted: bool = False
    latents: tuple[int, ...] = (3, 2, 2, 2)
    public_codes: int = 8
    encoder: str = "minilm"
    cfr_iterations: int = 20
    prefer: Prefer = "high_advantage"
    pairs: PairRule = "extremes"
    min_gap: float = 1e-6
    beta: float = 0.1
    epochs: int = 2
    batch: int = 64

    def __post_init__(self) -> None:
        for name in ("iterations", "games", "public_codes", "cfr_iterations", "epochs", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"lspo.{name} is {getattr(self, name)}: it must be at least 1")
        if self.candidates < 2:
            raise ConfigError(f"lspo.candidates is {self.candidates}: it must be at least 2, or nothing is compared")
        if len(self.latents) != len(ROLES) or min(self.latents) < 1:
            raise ConfigError(f"lspo.latents must be four numbers of at least 1 ({', '.join(ROLES)})")
        if self.beta <= 0 or self.min_gap < 0:
            raise ConfigError(f"lspo.beta ({self.beta}) must be above 0, lspo.min_gap ({self.min_gap}) 0 or more")


@dataclass
class Measure:
    """Evaluation after every iteration, the model on either side of the table.

    Attributes:
        games: Games a side; 0 for none.
        opponent: Who has the other side: a key of `agentgym.envs.werewolf_players.PLAYERS`.
        mode: How it plays, see `lspo_play`; before the first iteration as the model alone.
        seed: Chooses the deals; the same for every iteration.
    """

    games: int = 100
    opponent: str = "scripted"
    mode: Mode = "hybrid"
    seed: int = 12345

    def __post_init__(self) -> None:
        if self.games < 0:
            raise ConfigError(f"measure.games is {self.games}: it must be 0 or more")
        if self.opponent not in PLAYERS:
            raise unknown("measure.opponent", self.opponent, PLAYERS)


@dataclass
class Config:
    """Settings of an LSPO run.

    Attributes:
        game: Arguments of `agentgym.envs.werewolf.raw_env`.
        model: π_0.
        rollout: How games are played; ``rollout.concurrency`` games at a time.
        context: What a seat sees: append (with ``game.history: new``), or window:1 (with ``all``).
        optim: The optimizer of DPO.
        lspo: The algorithm.
        cfr: Deep CFR.
        measure: Evaluation.
        stop_after: Stop after this phase of the first iteration that is not finished; resume goes on.
        seed: Seed of everything.
    """

    game: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    context: str = "append"
    optim: OptimConfig = field(default_factory=OptimConfig)
    lspo: Lspo = field(default_factory=Lspo)
    cfr: DeepCFRConfig = field(default_factory=DeepCFRConfig)
    measure: Measure = field(default_factory=Measure)
    stop_after: Literal["", "collect", "cluster", "solve", "prefer", "tune", "measure"] = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rollout.top_p < 1 or self.rollout.temperature == 0:
            raise ConfigError(
                "candidates are sampled from the whole distribution: rollout.top_p=1, temperature above 0"
            )
        for name in ("text", "latents", "codebook"):
            if name in self.game:
                raise ConfigError(f"game.{name} is LSPO's to set: leave it out")
        try:
            env = raw_env(**self.game)
        except TypeError as error:
            raise ConfigError(f"game: {error}") from error
        if self.context == "append" and env.history != "new":
            raise ConfigError("context=append shows every turn again: set game.history=new, or context=window:1")


def make_config(values: Mapping[str, Any]) -> Config:
    """Build the config.

    Raises:
        ConfigError: For an unknown key, or settings that exclude each other.
    """
    cfr = {"depth": 2, "scale": 300.0}
    return build(Config, overlay({"cfr": cfr, "game": {"history": "new"}, "rollout": {"max_turns": 60}}, values))


class Job:
    """What all phases work with.

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
        self.policy = HFPolicy(self.model, renderer, "lspo")
        check_context(self.policy, cfg.rollout)
        self.run = Run(out, cfg, resume)
        self.run.tokens(self.tokenizer)
        self._weights = 0

    def folder(self, iteration: int) -> Path:
        """Where the phases of an iteration write."""
        return self.run.dir / f"iteration_{iteration}"

    def become(self, iteration: int) -> None:
        """Take up the weights of π_i."""
        if iteration != self._weights:
            checkpoint.restore(self._checkpoint(iteration), self.model)
        self._weights = iteration
        self.policy.weights_changed(iteration)

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
        return Rules(own.n, own.parity, own.rewards, found.counts, found.codebook, own.abstain, own.max_rounds)

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
        return StrategicPolicy(policy, solver, rules, Ear(known, rules.n), mode, self.cfg.lspo.candidates)


def _role(state: Any, seat: int) -> int:
    return int(state.roles[seat])


def collect(job: Job, iteration: int) -> dict[str, float]:
    """D_i, in files of a few hundred games: what was played is kept."""
    cfg, folder = job.cfg, job.folder(iteration)
    job.become(iteration - 1)
    speaks = CandidatePolicy(job.policy, cfg.lspo.candidates, _speaks, cfg.lspo.prompted)
    seats, size = {"self": Seat(speaks, True, context=cfg.context)}, _ROUNDS * cfg.rollout.concurrency
    for number, first in enumerate(range(0, cfg.lspo.games, size)):
        file = folder / f"games_{number:05d}.jsonl"
        if not file.exists():
            games = range(first, min(first + size, cfg.lspo.games))
            played = job.play(seats, ("self", "self"), cfg.seed, iteration, games)
            store.write(file, [t for game in played for t in game.trajectories.values()])
    games_read = job.games(iteration)
    turns = [turn for game in games_read for trajectory in game.seats for turn in trajectory.turns]
    job.run.trajectories(f"step_{iteration:05d}", [t for game in games_read[:_SHOWN] for t in game.seats])
    return {
        "selfplay/games": float(len(games_read)),
        "selfplay/wolves_win": float(np.mean([game.winner == "wolves" for game in games_read])),
        "episode/turns": float(np.mean([len(t.turns) for game in games_read for t in game.seats])),
        "episode/parse_error": float(np.mean([turn.parse_error is not None for turn in turns])),
    }


def _speaks(info: Mapping[str, Any]) -> bool:
    return info.get("phase") == "discussion"


def cluster(job: Job, iteration: int) -> dict[str, float]:
    """The latent strategies of every role, from all candidates of its speeches."""
    cfg, env, decode = job.cfg, job.env, job.policy.renderer.decode_reply
    texts: dict[int, list[str]] = {role: [] for role in range(len(ROLES))}
    for game in job.games(iteration):
        for seat, trajectory in enumerate(game.seats):
            role = game.role(seat, env.rules)
            for candidate in (c for turn in trajectory.turns for c in turn.candidates):
                text = lspo_pairs.statement(decode(candidate.ids), env.brief, env.max_speech)
                if text is not None:
                    texts[role].append(latents.relative(text, seat, env.rules.n))
    counts = latents.cluster_counts(iteration, cfg.lspo.latents)
    found = latents.fit(texts, counts, job.encoder, seeding.env_seed(cfg.seed, iteration, 1), cfg.lspo.public_codes)
    latents_file.save(found, job.folder(iteration) / "latents")
    return found.metrics()


def solve(job: Job, iteration: int) -> dict[str, float]:
    """σ_i and the regrets V."""
    solver = job.solver(iteration, job.latents(iteration))
    metrics: dict[str, float] = {}
    while solver.t < job.cfg.lspo.cfr_iterations:
        metrics = solver.step()
        last = solver.t == job.cfg.lspo.cfr_iterations
        if last:
            metrics["cfr/policy_loss"] = solver.fit_average()
        if last or solver.t % _SAVE_EVERY == 0:
            solver.save(job.folder(iteration) / "cfr")
    return {**metrics, "cfr/decisions": float(solver.decisions)}


def prefer(job: Job, iteration: int) -> dict[str, float]:
    """P_i."""
    cfg, found = job.cfg, job.latents(iteration)
    judge = Judge(
        job.rules(found),
        Ear(found, job.env.rules.n),
        job.solver(iteration, found),
        job.policy.renderer.decode_reply,
        job.env.brief,
        job.env.max_speech,
        cfg.lspo.prefer,
        cfg.lspo.pairs,
        cfg.lspo.min_gap,
    )
    games = job.games(iteration)
    judge.learn(games)
    pairs, counts = [], dict.fromkeys(lspo_pairs.COUNTS, 0.0)
    for game in games:
        more, seen = judge.pairs(game)
        pairs += more
        counts = {name: counts[name] + seen[name] for name in counts}
    with store.atomic_file(job.folder(iteration) / "pairs.jsonl") as file:
        file.writelines(json.dumps(asdict(pair)).encode() + b"\n" for pair in pairs)
    gaps = [pair.gap for pair in pairs] or [0.0]
    return {
        "pairs/number": float(len(pairs)),
        "pairs/gap": float(np.mean(gaps)),
        **{f"pairs/{name}": count for name, count in counts.items()},
    }


def tune(job: Job, iteration: int) -> dict[str, float]:
    """π_i by DPO from π_{i−1}, which is also the reference."""
    cfg = job.cfg
    job.become(iteration - 1)
    lines = (job.folder(iteration) / "pairs.jsonl").read_text().splitlines()
    pairs = [Pair(**json.loads(line)) for line in lines]
    rows = lspo_pairs.dpo_rows(pairs)
    learner, loss, sums, seen = Learner(job.model, cfg.optim), lspo_pairs.make_loss(cfg.lspo.beta), {}, 0
    if rows:
        lspo_pairs.add_reference(job.model, rows, cfg.optim.token_budget)
    for epoch in range(cfg.lspo.epochs):
        order = seeding.data_rng(cfg.seed, iteration * cfg.lspo.epochs + epoch).permutation(len(pairs))
        for at in range(0, len(pairs), cfg.lspo.batch):
            chosen = [row for pair in order[at : at + cfg.lspo.batch] for row in rows[2 * pair : 2 * pair + 2]]
            metrics = learner.step(pack(chosen, cfg.optim.token_budget, cfg.optim.share_prefixes), loss)
            sums = {name: sums.get(name, 0.0) + value for name, value in metrics.items()}
            seen += 1
    job.keep(iteration, {"updates": learner.updates})
    return {name: value / seen for name, value in sums.items()}


def measure(job: Job, iteration: int) -> dict[str, float]:
    """Win rates of π_i on either side, against the opponent."""
    settings = job.cfg.measure
    if not settings.games:
        return {}
    job.become(iteration)
    ours: Policy = job.policy
    if iteration and settings.mode != "llm":
        ours = job.player(ours, iteration, settings.mode)
    opponent = PlayerPolicy(settings.opponent, job.env.brief)
    seats = {"model": Seat(ours, context=job.cfg.context), "opponent": Seat(opponent)}
    shown: list[Trajectory] = []
    found: dict[str, float] = {}
    for name, sides in (("wolves", ("model", "opponent")), ("village", ("opponent", "model"))):
        games = job.play(seats, sides, settings.seed, 0, range(settings.games))
        one = [next(t for t in g.trajectories.values() if t.info["seat"] == "model" and t.turns) for g in games]
        won = summarise("lspo", settings.seed, one).success
        found |= {f"wins/{name}": won.mean, f"wins/{name}_lo": won.ci95[0], f"wins/{name}_hi": won.ci95[1]}
        shown += one
    job.run.trajectories(f"eval_{iteration:05d}", shown[:_SHOWN])
    job.run.evaluated(_name(job.cfg, iteration), iteration, summarise("lspo", settings.seed, shown))
    return found


def _name(cfg: Config, iteration: int) -> str:
    return "before" if not iteration else "after" if iteration == cfg.lspo.iterations else f"step_{iteration:05d}"


def main(cfg: Config, out: str | Path, resume: bool = False) -> dict[str, Evaluation]:
    """Run the phases of every iteration that are not finished; the last model is left in ``OUT/final``."""
    job = Job(cfg, out, resume)
    work = {"collect": collect, "cluster": cluster, "solve": solve, "prefer": prefer, "tune": tune, "measure": measure}
    with progress() as bar:
        task = bar.add_task("lspo", total=cfg.lspo.iterations * len(PHASES), note="")
        for iteration in range(cfg.lspo.iterations + 1):
            folder, gathered = job.folder(iteration), {}
            folder.mkdir(exist_ok=True)
            logged = folder / "logged"
            for phase in PHASES if iteration else ("measure",):
                done = folder / f"{phase}.json"
                if not done.exists():
                    bar.update(task, note=f"iteration {iteration} {phase}")
                    started = time.perf_counter()
                    metrics = work[phase](job, iteration)
                    metrics[f"time/{phase}"] = time.perf_counter() - started
                    with shielded(), store.atomic_file(done) as file:
                        file.write(json.dumps(metrics).encode())
                    if phase == cfg.stop_after and iteration:
                        return job.run.evaluations()
                gathered |= json.loads(done.read_bytes())
                bar.advance(task)
            if not logged.exists():
                job.run.log(iteration, gathered)
                logged.touch()
    job.become(cfg.lspo.iterations)
    checkpoint.save_model(job.run.dir / "final", job.model, job.tokenizer)
    job.run.finish()
    return job.run.evaluations()
