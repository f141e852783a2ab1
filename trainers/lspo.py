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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from agentgym.envs.werewolf_players import PlayerPolicy
from agentgym.envs.werewolf_predict import PredictingPolicy, accuracy
from agentgym.envs.werewolf_rules import ROLES
from agentgym.trainers import lspo_pairs
from agentgym.trainers.lspo_config import Config, make_config
from agentgym.trainers.lspo_job import Job
from agentgym.trainers.lspo_pairs import Ear, Judge, Pair

from agentgym import latents, latents_file, seeding, store
from agentgym.evaluate import Evaluation, summarise
from agentgym.learner import checkpoint
from agentgym.learner.learner import Learner
from agentgym.learner.pack import pack
from agentgym.policies.base import Policy
from agentgym.policies.candidates import CandidatePolicy
from agentgym.run import progress, shielded
from agentgym.selfplay import Seat
from agentgym.types import Trajectory

__all__ = ["PHASES", "Config", "Job", "main", "make_config"]

PHASES = ("collect", "cluster", "solve", "prefer", "tune", "measure")
_SHOWN = 4
_ROUNDS = 4
"""Games in a file, for each that is played at a time: the decoder runs empty at the end of every file."""
_SAVE_EVERY = 5
"""Iterations of CFR between two saves, which hold all reservoirs."""


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
    seed, codes = seeding.env_seed(cfg.seed, iteration, 1), cfg.lspo.public_codes
    found = latents.fit(texts, counts, job.encoder, seed, codes, arguments=cfg.lspo.arguments)
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
    job.rest()
    job.take_up(iteration - 1)
    lines = (job.folder(iteration) / "pairs.jsonl").read_text().splitlines()
    pairs = [Pair(**json.loads(line)) for line in lines]
    rows = lspo_pairs.dpo_rows(pairs)
    learner, loss = Learner(job.model, cfg.optim), lspo_pairs.make_loss(cfg.lspo.beta, cfg.lspo.nll_weight)
    sums: dict[str, float] = {}
    seen = 0
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
    if settings.predictions:
        ours = PredictingPolicy(ours)
    opponent = PlayerPolicy(settings.opponent, job.env.brief)
    seats = {"model": Seat(ours, context=job.cfg.context), "opponent": Seat(opponent)}
    shown: list[Trajectory] = []
    played: list[list[Trajectory]] = []
    found: dict[str, float] = {}
    for name, sides in (("wolves", ("model", "opponent")), ("village", ("opponent", "model"))):
        games = job.play(seats, sides, settings.seed, 0, range(settings.games))
        played += [list(game.trajectories.values()) for game in games]
        one = [next(t for t in g.trajectories.values() if t.info["seat"] == "model" and t.turns) for g in games]
        won = summarise("lspo", settings.seed, one).success
        found |= {f"wins/{name}": won.mean, f"wins/{name}_lo": won.ci95[0], f"wins/{name}_hi": won.ci95[1]}
        shown += one
    if settings.predictions:
        found |= {name: right.mean for name, right in accuracy(played).items()}
    job.run.trajectories(f"eval_{iteration:05d}", shown[:_SHOWN])
    job.run.evaluated(_name(job.cfg, iteration), iteration, summarise("lspo", settings.seed, shown))
    return found


def _name(cfg: Config, iteration: int) -> str:
    return "before" if not iteration else "after" if iteration == cfg.lspo.iterations else f"step_{iteration:05d}"


def main(cfg: Config, out: str | Path, resume: bool = False) -> dict[str, Evaluation]:
    """Run the phases of every iteration that are not finished; the last model is left in ``OUT/final``."""
    work = {"collect": collect, "cluster": cluster, "solve": solve, "prefer": prefer, "tune": tune, "measure": measure}
    with Job(cfg, out, resume) as job, progress() as bar:
        task = bar.add_task("lspo", total=1 + cfg.lspo.iterations * len(PHASES), note="")
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
        job.take_up(cfg.lspo.iterations)
        checkpoint.save_model(job.run.dir / "final", job.model, job.tokenizer)
        job.run.finish()
        return job.run.evaluations()
