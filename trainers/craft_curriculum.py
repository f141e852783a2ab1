"""CRAFT-GUI's curriculum: stages by the length of the gold solution, one after the other, with some replay.

An episode whose gold solution takes L actions belongs to one stage, with all of its steps. With boundaries (3, 8):

    stage(L) = 1 if L ≤ 3,  2 if 4 ≤ L ≤ 8,  3 otherwise;  a question about a screen has no L and belongs to the last

A *phase* trains on one stage, or on all alike (`mixed`). It ends after its share of the steps, or as soon as the moving
mean m ← d m + (1 − d) R̄ of its reward, from 0, was above a threshold in N updates in a row.

Why: with a reward of 0 or 1 and success p, a group of G teaches with probability 1 − p^G − (1 − p)^G (`signal`), which
is next to nothing for tasks that are far too hard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agentgym import seeding
from agentgym.errors import ConfigError


@dataclass
class CurriculumConfig:
    """Which tasks are trained on when.

    Attributes:
        boundaries: Largest L of each stage but the last; none for a single stage, where L need not be known.
        count_terminal_step: Count the action that says that the task is done as one more step of the solution.
        order: easy_to_hard; hard_to_easy; mixed, every group of a stage drawn uniformly; hard_only, the last stage.
        stage_steps: Training steps of each phase but the last, which has the rest; none for equal parts, or, with
            ``promote_above``, for no limit.
        replay_frac: Share of groups that come from stages trained before.
        promote_above: Threshold of the moving mean reward, or None for no promotion.
        promote_updates: Updates in a row for which it must be above that.
        promote_decay: d.
        reset_optimizer: Forget the optimizer's moments where a phase begins.
    """

    boundaries: tuple[int, ...] = (3, 8)
    count_terminal_step: bool = False
    order: Literal["easy_to_hard", "hard_to_easy", "mixed", "hard_only"] = "easy_to_hard"
    stage_steps: tuple[int, ...] = ()
    replay_frac: float = 0.2
    promote_above: float | None = None
    promote_updates: int = 50
    promote_decay: float = 0.9
    reset_optimizer: bool = True

    def __post_init__(self) -> None:
        self.boundaries, self.stage_steps = tuple(self.boundaries), tuple(self.stage_steps)
        least = 2 if self.count_terminal_step else 1
        if list(self.boundaries) != sorted(set(self.boundaries)) or any(b < least for b in self.boundaries):
            raise ConfigError(
                f"curriculum.boundaries is {list(self.boundaries)}: it must be ascending numbers of steps of at least "
                f"{least}, such as [3, 8]"
            )
        if self.stage_steps and len(self.stage_steps) != len(self.phases) - 1:
            raise ConfigError(
                f"curriculum.stage_steps has {len(self.stage_steps)} numbers: there are {len(self.phases)} phases, and "
                "the last has the rest of the steps"
            )
        if any(n < 1 for n in self.stage_steps):
            raise ConfigError(f"curriculum.stage_steps is {list(self.stage_steps)}: each must be at least 1")
        if not 0 <= self.replay_frac < 1:
            raise ConfigError(f"curriculum.replay_frac is {self.replay_frac}: it must be at least 0 and below 1")
        if not 0 <= self.promote_decay < 1:
            raise ConfigError(f"curriculum.promote_decay is {self.promote_decay}: it must be at least 0 and below 1")
        if self.promote_updates < 1:
            raise ConfigError(f"curriculum.promote_updates is {self.promote_updates}: it must be at least 1")
        if self.promote_above is not None and not 0 <= self.promote_above < 1:
            raise ConfigError(
                f"curriculum.promote_above is {self.promote_above}: rewards lie between 0 and 1, so it must be at "
                "least 0 and below 1, or null"
            )

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.boundaries) + 1

    @property
    def phases(self) -> list[list[int]]:
        """The stages of each phase, numbered from 1."""
        stages = list(range(1, self.stages + 1))
        return {
            "easy_to_hard": [[s] for s in stages],
            "hard_to_easy": [[s] for s in reversed(stages)],
            "mixed": [stages],
            "hard_only": [stages[-1:]],
        }[self.order]

    def stage_of(self, length: int | None) -> int:
        """The stage of an episode whose gold solution takes L actions, from 1; the last where there is no L."""
        if not length:
            return self.stages
        return 1 + sum(length + self.count_terminal_step > b for b in self.boundaries)

    def steps_of(self, stage: int) -> list[int | None]:
        """Least and largest L of a stage, what an environment gets as ``options["steps"]``; None for no bound."""
        edges = [0, *self.boundaries]
        high = self.boundaries[stage - 1] - self.count_terminal_step if stage < self.stages else None
        return [max(1, edges[stage - 1] + 1 - self.count_terminal_step), high]


class Curriculum:
    """Where a run is in its phases.

    Attributes:
        state: ``phase`` (from 0), ``since`` (updates in it), ``mean`` and ``above`` (updates in a row above the
            threshold): plain values, for a checkpoint.
    """

    def __init__(self, config: CurriculumConfig, steps: int, state: dict[str, Any] | None = None):
        """Begin with the first phase.

        Args:
            config: Settings.
            steps: Training steps of the run.
            state: Where the state is kept, a mapping that others may add to.

        Raises:
            ConfigError: If the steps do not suffice for all phases.
        """
        self.config, self.state = config, {} if state is None else state
        self.state.update(phase=0, since=0, mean=0.0, above=0)
        phases = len(config.phases)
        self._limits: Sequence[int] = config.stage_steps
        if not config.stage_steps and config.promote_above is None:
            self._limits = [steps * (i + 1) // phases - steps * i // phases for i in range(phases - 1)]
        if steps < phases or sum(self._limits) >= steps:
            raise ConfigError(
                f"steps is {steps}: too few for the {phases} phases of curriculum.order={config.order} with "
                f"curriculum.stage_steps={list(self._limits)}"
            )

    @property
    def stages(self) -> list[int]:
        """The stages of this phase."""
        return self.config.phases[self.state["phase"]]

    def plan(self, run_seed: int, step: int, groups: int) -> list[int]:
        """The stage of each group of a training step; those that are replayed come last.

        Of G groups, ``replay_frac`` · G are replayed: the whole part of that, and one more with the probability of the
        rest; at least one group is new.
        """
        rng = seeding.data_rng(run_seed, step)
        earlier = sorted({s for stages in self.config.phases[: self.state["phase"]] for s in stages})
        replayed = min(int(self.config.replay_frac * groups + rng.random()), groups - 1) if earlier else 0
        new = rng.choice(self.stages, groups - replayed)
        return [*map(int, new), *map(int, rng.choice(earlier, replayed) if replayed else ())]

    def record(self, reward: float) -> bool:
        """Count an update; True if the next phase begins.

        Args:
            reward: Mean reward of the groups that were not replayed.
        """
        state, config = self.state, self.config
        state["since"] += 1
        state["mean"] = config.promote_decay * state["mean"] + (1 - config.promote_decay) * reward
        over = config.promote_above is not None and state["mean"] > config.promote_above
        state["above"] = state["above"] + 1 if over else 0
        phase = state["phase"]
        if phase == len(config.phases) - 1:
            return False
        spent = bool(self._limits) and state["since"] >= self._limits[phase]
        if not spent and state["above"] < config.promote_updates:
            return False
        state.update(phase=phase + 1, since=0, mean=0.0, above=0)
        return True


def signal(success: float, group_size: int) -> float:
    """Probability that a group with rewards of 0 or 1 has an advantage that is not 0: 1 − p^G − (1 − p)^G."""
    return float(1 - success**group_size - (1 - success) ** group_size)
