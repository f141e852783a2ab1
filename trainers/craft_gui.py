"""CRAFT-GUI: GRPO on a curriculum of longer and longer tasks, with a reward of format, action type and argument.

    stage(L)  = 1 if L ≤ 3, 2 if 4 ≤ L ≤ 8, 3 otherwise;    L = actions of the gold solution
    R[i,k]    = w_f F + F (w_t T + w_a T A)                   reply k of episode i is an action on the screen
    R[i,k]    = w_f F + (1 − w_f) F J                         it answers a question about the screen
    R_i       = (1 − w_o) mean_k R[i,k] + w_o O_i             O: what the environment paid
    A_i       = (R_i − mean_g R) / (std_g R + 1e-6)           std over n − 1; groups with std 0 are left out
    L(θ)      = GRPO's clipped loss, + β k3(π_θ ‖ π_ref)

| equation          | function                                                                     |
|-------------------|------------------------------------------------------------------------------|
| stage, schedule   | `craft_curriculum.CurriculumConfig.stage_of`, `craft_curriculum.Curriculum`  |
| R[i,k]            | `craft_rewards.operation_reward`, `craft_rewards.understanding_reward`       |
| J                 | `craft_judge.RunJudge`                                                       |
| R_i               | `craft_rewards.episode_reward`                                               |
| A                 | `assign_advantages`, `credit.group_advantage`                                |
| L                 | `grpo.make_loss`                                                             |

F is whether the codec could read the reply; T, A, and what is needed for J the environment says in ``info`` after each
step (`craft_score`). It tells L as ``info["episode_steps"]`` at reset, and ``options["steps"] = [low, high]`` asks it
for a task with such an L.

| preset       | reward    | w_o | curriculum                                                                   |
|--------------|-----------|-----|------------------------------------------------------------------------------|
| craft_gui    | hybrid    | 0   | easy to hard                                                                 |
| craft_online | hybrid    | 0.5 | easy to hard                                                                 |
| coarse       | O alone   | –   | easy to hard                                                                 |
| gui_r1       | GUI-R1's  | 0   | none                                                                         |

Source: CRAFT-GUI (2508.11360). Its text could not be read: what is known are the abstract and the three stages.
Weights, judge and all else are filled in, from GUI-R1 (2504.10458) or by choice: see docs/algorithms/craft_gui.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from agentgym.trainers import grpo
from agentgym.trainers.craft_curriculum import Curriculum, CurriculumConfig
from agentgym.trainers.craft_judge import check_spread
from agentgym.trainers.craft_score import KEPT, Craft, check_step, open_judge, reward_of, score, stage_metrics

from agentgym.config import build, overlay
from agentgym.credit import group_advantage
from agentgym.errors import ConfigError, TooManyFailures, unknown
from agentgym.evaluate import Evaluation
from agentgym.learner.learner import Learner, LossFn
from agentgym.learner.model import frozen_copy
from agentgym.rollout import Rollout, group_tasks
from agentgym.training import Training
from agentgym.types import Group

PRESETS: dict[str, dict[str, Any]] = {
    "craft_gui": {},
    "craft_online": {"craft": {"outcome_weight": 0.5}},
    "coarse": {"craft": {"reward": "coarse"}},
    "gui_r1": {"craft": {"reward": "gui_r1"}, "curriculum": {"boundaries": []}},
}
_GUI_R1 = {"algo": {"kl_coef": 0.01}, "group_size": 5, "optim": {"lr": 1e-6, "weight_decay": 0.01}}


@dataclass
class Config(grpo.Config):
    """Settings of a CRAFT-GUI run: those of GRPO, whose ``algo`` is the loss, the reward and the curriculum.

    Attributes:
        preset: A row of the table above.
        craft: The reward.
        curriculum: The stages.
    """

    preset: str = "craft_gui"
    craft: Craft = field(default_factory=Craft)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("resample", "overlong_length"):
            if getattr(self.algo, name):
                raise ConfigError(f"algo.{name} works on the environment's reward, and the reward is set by craft")
        Curriculum(self.curriculum, self.steps)


def make_config(values: Mapping[str, Any]) -> Config:
    """Build the config, GUI-R1's public settings and the preset below the settings given.

    Raises:
        ConfigError: For an unknown preset or key, or settings that exclude each other.
    """
    preset = str(values.get("preset", "craft_gui"))
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    return build(Config, overlay(overlay(_GUI_R1, PRESETS[preset]), values))


def assign_advantages(algo: grpo.Algo, groups: Sequence[Group], rewards: np.ndarray) -> np.ndarray:
    """Write A_i on every sampled token of trajectory i, and return the A_i ``[N]``."""
    trajectories = [t for g in groups for t in g.trajectories]
    advantages = group_advantage(rewards, [t.group for t in trajectories], algo.center, algo.scale)
    for trajectory, advantage in zip(trajectories, advantages.tolist(), strict=True):
        for segment in trajectory.segments:
            segment.advantages = [advantage * m for m in segment.mask]
    return advantages


def reset_options(curriculum: CurriculumConfig, stage: int) -> dict[str, Any]:
    """Options of a reset that ask for a task of a stage; none where there is one stage only."""
    return {"steps": curriculum.steps_of(stage)} if curriculum.boundaries else {}


def check_environment(cfg: Config, job: Training) -> None:
    """Refuse, before any rollout, an environment that does not keep to the contract above.

    Raises:
        ConfigError: If it does not.
    """
    stages = range(1, cfg.curriculum.stages + 1)
    trained = {stage for phase in cfg.curriculum.phases for stage in phase}
    for stage in stages if cfg.craft.stage_episodes else sorted(trained):
        options = reset_options(cfg.curriculum, stage)
        info = job.first_info(**options)
        if options:
            if "episode_steps" not in info:
                raise ConfigError(
                    f"{cfg.env.id} does not say how long a gold solution is: its info holds no episode_steps at reset, "
                    "and a curriculum needs it; use curriculum.boundaries=[] for none"
                )
            check_stage(cfg, stage, info["episode_steps"])
        if cfg.craft.reward != "coarse":
            hints = [info.get("expert_action"), *(info.get("admissible_commands") or ()), "wait"]
            check_step(cfg.craft, job.first_info(next(str(a) for a in hints if a), **options), cfg.env.id)


def check_stage(cfg: Config, stage: int, length: int | None) -> None:
    """Refuse an environment that gives tasks of another stage than it was asked for.

    Raises:
        ConfigError: If it does.
    """
    if cfg.curriculum.boundaries and cfg.curriculum.stage_of(length) != stage:
        raise ConfigError(
            f"{cfg.env.id} was asked for a task of {cfg.curriculum.steps_of(stage)} steps (options['steps'], null for "
            f"no bound) and gave one of {length}: it cannot be trained on with a curriculum; use "
            "curriculum.boundaries=[] for none"
        )


def collect(cfg: Config, rollout: Rollout, curriculum: Curriculum, step: int) -> tuple[list[Group], list[int]]:
    """The groups of a training step, and the stage of each.

    Raises:
        ConfigError: The environment gave a task of another stage.
        TooManyFailures: All groups failed for reasons outside the policy.
    """
    plan = curriculum.plan(cfg.seed, step, cfg.groups)
    tasks = group_tasks(cfg.seed, step, cfg.groups, cfg.group_size)
    stages = {t.group: plan[t.index] for t in tasks}
    groups = rollout.collect(
        [dataclasses.replace(t, options=reset_options(cfg.curriculum, plan[t.index])) for t in tasks]
    )
    if not groups:
        why = "; ".join(rollout.stats.messages.values())
        raise TooManyFailures(f"all {cfg.groups} groups of step {step} failed for reasons outside the policy: {why}")
    for group in groups:
        check_stage(cfg, stages[group.id], group.trajectories[0].info.get("episode_steps"))
    return groups, [stages[group.id] for group in groups]


def update(
    cfg: Config, learner: Learner, groups: Sequence[Group], rewards: np.ndarray, loss: LossFn
) -> dict[str, float]:
    """Credit and all optimizer steps of one training step, without the groups that have no spread.

    Args:
        cfg: Settings.
        learner: What learns.
        groups: Groups of `cfg.group_size` members.
        rewards: R_i of all their members, ``[N]``.
        loss: `grpo.make_loss`.
    """
    advantages = assign_advantages(cfg.algo, groups, rewards)
    taught = [bool(np.any(a)) for a in np.split(advantages, len(groups))]
    kept = [g for g, ok in zip(groups, taught, strict=True) if ok]
    metrics = grpo.update(cfg, learner, kept, advantages[np.repeat(taught, cfg.group_size)], loss)
    return {**metrics, "group/kept": float(len(kept))}


def measure_stages(cfg: Config, job: Training) -> None:
    """Evaluate on held-out tasks of every stage, into ``evaluation.json`` as ``stage_1_step_00000`` and so on."""
    for stage in range(1, cfg.curriculum.stages + 1) if cfg.craft.stage_episodes else ():
        options = reset_options(cfg.curriculum, stage)
        job.measure(f"stage_{stage}_step_{job.step:05d}", cfg.craft.stage_episodes, **options)


def main(cfg: Config, out: str | Path, resume: bool = False) -> dict[str, Evaluation]:
    """Collect, judge, credit, update, log, save; evaluation before and after; the model is left in ``OUT/final``."""
    with Training("craft_gui", cfg, out, resume) as job:
        check_environment(cfg, job)
        judge = open_judge(cfg.craft, job.run.dir / "grades.jsonl")
        job.rollout.keep = KEPT
        reference = frozen_copy(job.model) if cfg.algo.kl_coef else None
        loss = grpo.make_loss(cfg.algo, reference, cfg.rollout.temperature)
        learner = Learner(job.model, cfg.optim)
        curriculum = Curriculum(cfg.curriculum, cfg.steps, job.state)
        job.state["grades"] = []
        for step in job.steps(learner):
            if job.state["since"] == 0:
                measure_stages(cfg, job)
            groups, stages = collect(cfg, job.rollout, curriculum, step)
            trajectories = [t for g in groups for t in g.trajectories]
            scores, grades = score(cfg.craft, trajectories, judge)
            recent = check_spread([*job.state["grades"], *(grade or 0.0 for grade in grades)], cfg.craft.judge_window)
            with job.update(trajectories) as metrics:
                rewards = np.array([reward_of(cfg.craft, t, s) for t, s in zip(trajectories, scores, strict=True)])
                each = np.repeat(stages, cfg.group_size)
                new = np.isin(each, curriculum.stages)
                metrics |= stage_metrics(trajectories, scores, rewards, each)
                metrics |= {
                    "craft/phase": float(job.state["phase"] + 1),
                    "craft/replayed_frac": float(1 - new.mean()),
                    "craft/judge_silent": float(grades.count(None)),
                }
                metrics |= update(cfg, learner, groups, rewards, loss)
                job.state["grades"] = recent
                ended = bool(new.any()) and curriculum.record(float(rewards[new].mean()))
                metrics["craft/moving_mean"] = job.state["mean"]
                if ended and cfg.curriculum.reset_optimizer:
                    learner.optimizer.state.clear()  # the moments; the schedule of the learning rate goes on
        measure_stages(cfg, job)
    return job.results()
