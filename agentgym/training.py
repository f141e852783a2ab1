"""What the training loops share: models, environments, run folder, evaluation, checkpoints, interrupts.

An algorithm owns its loop::

    with Training("grpo", cfg, out, resume) as job:
        learner = Learner(job.model, cfg.optim)
        for step in job.steps(learner):
            groups = job.rollout.collect(...)
            with job.update([t for g in groups for t in g.trajectories]) as metrics:
                ...                                                     # credit, optimizer steps
    return job.results()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agentgym.ahead import AheadRollout
from agentgym.env_worker import EnvConfig
from agentgym.errors import AgentGymError, ConfigError
from agentgym.evaluate import Evaluation, evaluate
from agentgym.learner import checkpoint
from agentgym.learner.learner import Learner, OptimConfig
from agentgym.learner.mismatch import MismatchConfig, measure
from agentgym.learner.setup import EvalConfig, ModelConfig, open_model
from agentgym.policies.decode import DecodeConfig
from agentgym.policies.hf import HFPolicy
from agentgym.policies.restricted import RestrictedPolicy
from agentgym.rollout import Rollout, RolloutConfig, RolloutStats
from agentgym.run import Run, progress, shielded
from agentgym.types import Trajectory

_SHOWN = 32


@dataclass
class TrainingConfig:
    """The settings that every reinforcement learning trainer has.

    Attributes:
        env: The environment.
        model: The starting policy.
        rollout: How episodes are played.
        decode: What writes the policy's turns.
        mismatch: What is done if that samples otherwise than the trainer's model would.
        optim: The optimizer.
        eval: Evaluation.
        steps: Training steps.
        updates: Passes over a step's trajectories.
        minibatches: Optimizer steps of a pass.
        save_every: Steps between checkpoints.
        show_every: Steps between saved sample trajectories.
        seed: Seed of everything.
    """

    env: EnvConfig = field(default_factory=EnvConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    mismatch: MismatchConfig = field(default_factory=MismatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    steps: int = 100
    updates: int = 1
    minibatches: int = 1
    save_every: int = 20
    show_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "updates", "minibatches", "save_every", "show_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}: it must be 0 or more")
        if self.rollout.top_p < 1 or self.rollout.temperature == 0:
            raise ConfigError("training samples from the whole distribution: rollout.top_p=1, temperature above 0")
        self.optim.check_steps(self.steps * self.updates * self.minibatches)


class Training:
    """A reinforcement learning run: leave the ``with`` block and it is saved, closed, and can be resumed.

    Attributes:
        model: The policy's module, trained in place.
        policy: Acts with it.
        rollout: Plays training episodes with it.
        run: The run folder.
        step: Training steps done.
        state: What the trainer itself remembers, tensors and plain values: saved with every checkpoint and taken up
            again when a run is resumed. Change it inside `update`.
    """

    def __init__(
        self,
        name: str,
        cfg: TrainingConfig,
        out: str | Path,
        resume: bool = False,
        acting: Callable[[HFPolicy], RestrictedPolicy] | None = None,
    ):
        """Open environments, model and run folder.

        Args:
            name: Name of the algorithm.
            cfg: Settings.
            out: Run folder.
            resume: Go on from its last checkpoint.
            acting: Makes the policy that acts out of the one that writes freely; None for the latter itself.

        Raises:
            ConfigError: If one of them cannot be opened.
        """
        self.name, self.cfg, self.resume, self.step = name, cfg, resume, 0
        with ExitStack() as stack:
            self._pool = stack.enter_context(cfg.env.pool())
            self._bar = stack.enter_context(progress())
            self.model, self._tokenizer, renderer = open_model(cfg.model, cfg.seed, None)
            if cfg.decode.backend == "vllm" and acting is not None:
                raise ConfigError("decode.backend is vllm, but this policy chooses among actions: that needs hf")
            self.policy = stack.enter_context(
                open_policy(self.model, self._tokenizer, renderer, cfg.decode, cfg.rollout, Path(out), name)
            )
            if acting is not None:
                self.policy = acting(self.policy)
            kind = AheadRollout if cfg.decode.staleness else Rollout
            self.rollout = kind(self._pool, self.policy, cfg.rollout, cfg.env.options)
            self.run = Run(out, cfg, resume)
            self.run.tokens(self._tokenizer)
            self._closing = stack.pop_all()
        self.state: dict[str, Any] = {}
        self._learner: Learner | None = None
        self._updates = 0
        self._started = 0.0
        self._note = ""

    def __enter__(self) -> Training:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with self._closing:
            stopped = isinstance(error, KeyboardInterrupt | AgentGymError)
            if stopped and self._learner is not None and self._learner.updates == self._updates:
                self._save()  # unless it stopped in the middle of a step

    def first_info(self, *actions: str, **options: Any) -> dict[str, Any]:
        """The ``info`` of a first reset, or of actions after it, to refuse an environment before any rollout.

        Args:
            actions: What to do.
            options: Options of the reset, over those of the config.
        """
        return self._pool.first_info(self.cfg.seed, {**self.cfg.env.options, **options}, *actions)

    def steps(self, learner: Learner) -> Iterator[int]:
        """The training steps that are still to be done, with evaluations and checkpoints between them.

        Resumes the learner first if the run is resumed; after the last step the model is in ``OUT/final``.
        """
        cfg = self.cfg
        if self.resume:
            self.step = checkpoint.resume(self.run.dir / "checkpoints", learner, self.state)
        self.policy.weights_changed(self.step)
        self.run.rewind(self.step)
        self._measure("before", cfg.eval.final_episodes)
        if isinstance(self.rollout, AheadRollout):
            self.rollout.begin(cfg.decode.staleness, self.state.get("ahead"))
            self._closing.callback(self.rollout.close)
        self._learner, self._updates = learner, learner.updates
        job = self._bar.add_task(self.name, total=cfg.steps, completed=self.step, note="")
        while self.step < cfg.steps:
            if cfg.eval.every and self.step and self.step % cfg.eval.every == 0:
                self._measure(f"step_{self.step:05d}", cfg.eval.episodes)
            self.rollout.stats = RolloutStats(recent=self.rollout.stats.recent)
            self._started = time.perf_counter()
            yield self.step
            self._bar.update(job, completed=self.step, note=self._note)
            if self.step % cfg.save_every == 0:
                self._save()
        self._save()
        checkpoint.save_model(self.run.dir / "final", self.model, self._tokenizer)
        self._measure("after", cfg.eval.final_episodes)
        self.run.finish()

    @contextmanager
    def update(
        self, drawn: Sequence[Trajectory], shown: Sequence[Trajectory] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The part of a step that happens wholly or not at all: credit and optimizer steps.

        Args:
            drawn: Every trajectory of the step.
            shown: Those worth keeping in the run folder; the first of ``drawn`` by default.

        Yields:
            Metrics, to be added to; they are logged at the end of the block.
        """
        assert self._learner is not None
        collected = time.perf_counter()
        metrics = rollout_metrics(drawn, self.rollout.stats, collected - self._started)
        mismatch: dict[str, float] = {}
        with shielded():
            if self.cfg.decode.backend != "hf":
                cfg = self.cfg
                mismatch = measure(self.model, drawn, cfg.optim, cfg.rollout.temperature, cfg.mismatch)
                metrics["rollout/engine_restarts"] = float(self.policy.stats["restarts"])
                self.policy.rest()
            if isinstance(self.rollout, AheadRollout):
                metrics |= self.rollout.metrics(drawn)
            yield metrics
            if isinstance(self.rollout, AheadRollout):
                self.rollout.settle()
            self.step, self._updates = self.step + 1, self._learner.updates
            metrics |= mismatch  # what a trainer says of it is nothing once the ratio is corrected
            metrics["time/update"] = time.perf_counter() - collected
            self.policy.weights_changed(self.step)
            metrics["time/sync"] = time.perf_counter() - collected - metrics["time/update"]
            self.run.log(self.step, metrics)
            if self.step % self.cfg.show_every == 0 or self.step == 1:
                self.run.trajectories(f"step_{self.step:05d}", list(shown or drawn)[:_SHOWN])
        success = metrics.get("episode/success")
        self._note = f"return {metrics['reward/mean']:.3f}" if success is None else f"success {success:.1%}"

    def results(self) -> dict[str, Evaluation]:
        """The evaluations before and after."""
        found = self.run.evaluations()
        return {name: found[name] for name in ("before", "after")}

    def measure(self, name: str, episodes: int, **options: Any) -> None:
        """Evaluate under other options of the reset, unless it was done before; kept in ``evaluation.json`` alone."""
        if name not in self.run.evaluations():
            result, _ = self._evaluate(name, episodes, {**self.cfg.env.eval_options, **options})
            self.run.evaluated(name, self.step, result, log=False)

    def _measure(self, name: str, episodes: int) -> None:
        if name in self.run.evaluations():
            return
        result, played = self._evaluate(name, episodes, self.cfg.env.eval_options)
        self.run.trajectories(f"eval_{name}", played[:_SHOWN])
        self.run.evaluated(name, self.step, result)

    def _evaluate(self, name: str, episodes: int, options: dict[str, Any]) -> tuple[Evaluation, list[Trajectory]]:
        cfg = self.cfg
        job = self._bar.add_task(f"eval {name}", total=episodes, note="")
        result, played = evaluate(
            self._pool,
            self.policy,
            cfg.rollout,
            episodes,
            cfg.eval.seed,
            options,
            on_episode=lambda _: self._bar.advance(job),
        )
        self._bar.update(job, note=result.note())
        return result, played

    def _save(self) -> None:
        assert self._learner is not None
        if isinstance(self.rollout, AheadRollout):
            self.state["ahead"] = self.rollout.books()
        folder = self.run.dir / "checkpoints" / f"step_{self.step:05d}"
        state = {**self._learner.state(), "step": self.step, "trainer": self.state}
        checkpoint.save(folder, self.model, self._tokenizer, state)


@contextmanager
def open_policy(
    model: Any, tokenizer: Any, renderer: Any, decode: DecodeConfig, rollout: RolloutConfig, out: Path, name: str
) -> Iterator[Any]:
    """The policy that writes with a model, decoded in this process or by vLLM.

    Raises:
        ConfigError: If there is no vLLM.
    """
    if decode.backend == "hf":
        yield HFPolicy(model, renderer, name)
        return
    from agentgym.policies.vllm import VLLMPolicy

    room = (rollout.context_limit, rollout.concurrency)
    with VLLMPolicy(model, tokenizer, renderer, decode, out, *room, name) as policy:
        yield policy


def rollout_metrics(drawn: Sequence[Trajectory], stats: RolloutStats, seconds: float) -> dict[str, float]:
    """What the episodes of a step were like: all that were drawn, whether or not they were learned from."""
    tokens = sum(t.action_tokens for t in drawn)
    returns: dict[str, list[float]] = {}
    for t in drawn:
        returns.setdefault(t.group, []).append(t.episode_return)
    known = [t.success for t in drawn if t.success is not None]
    errors = {f"rollout/error/{kind}": float(n) for kind, n in stats.errors.items()}
    spread = {"group/zero_std_frac": float(np.mean([np.ptp(group) == 0 for group in returns.values()]))}
    return {
        "reward/mean": float(np.mean([t.episode_return for t in drawn])),
        **({"episode/success": float(np.mean(known))} if known else {}),
        "episode/turns": float(np.mean([len(t.turns) for t in drawn])),
        "episode/parse_error": float(np.mean([any(u.parse_error for u in t.turns) for t in drawn])),
        "tokens/action": tokens / len(drawn),
        "rollout/dropped_groups": float(stats.dropped_groups),
        "perf/action_tok_s": tokens / seconds,
        "time/rollout": seconds,
        **(spread if len(returns) < len(drawn) else {}),
        **errors,
    }
