"""Supervised fine-tuning on demonstrations: the warm start of every method here.

For demonstrations with tokens o_i and a mask m that is 1 on the demonstrator's tokens:

    L(θ) = − Σ_i Σ_t w[i,t] · log π_θ(o[i,t] | o[i,<t]) / Σ_i Σ_t w[i,t],   w = m + λ (1 − m)

λ = ``text_weight`` is 0 for a pretrained model. A model from scratch has not seen the language of the environment: with
λ above 0 it is also trained to predict what the environment says.

| equation  | function                  |
|-----------|---------------------------|
| − log π_θ | `learner.losses.sft_loss` |
| w / Σ w   | `batches`                 |

The demonstrator is the environment's expert, which plays a random admissible command in ``noise`` of its turns. A
noisy demonstrator shows states that a perfect one never visits, and leaves reinforcement learning something to do.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from agentgym import seeding, store
from agentgym.config import build
from agentgym.context import make_context
from agentgym.env_worker import EnvConfig, EnvPool
from agentgym.errors import AgentGymError, ConfigError, ContextFull, TooManyFailures
from agentgym.evaluate import Evaluation, evaluate
from agentgym.learner import checkpoint
from agentgym.learner.learner import Learner, OptimConfig
from agentgym.learner.logprobs import TokenOutput
from agentgym.learner.losses import sft_loss
from agentgym.learner.pack import MicroBatch, pack, rows_of
from agentgym.learner.setup import TINY_POSITIONS, EvalConfig, ModelConfig, open_model
from agentgym.policies.hf import HFPolicy
from agentgym.policies.scripted import ExpertPolicy
from agentgym.renderer import Renderer, Row
from agentgym.rollout import Rollout, RolloutConfig, check_context, group_tasks
from agentgym.run import Run, progress, shielded
from agentgym.types import Trajectory, Turn


@dataclass
class Config:
    """Settings of an SFT run.

    Attributes:
        env: The environment.
        model: The model.
        rollout: How demonstrations and evaluations are played.
        optim: The optimizer.
        eval: Evaluation.
        demonstrations: Episodes of the demonstrator.
        noise: Share of turns in which it plays a random admissible command.
        text_weight: λ, the weight of tokens that the demonstrator did not write.
        epochs: Passes over the demonstrations.
        batch_size: Demonstrations of one optimizer step.
        save_every: Optimizer steps between checkpoints.
        seed: Seed of everything.
    """

    env: EnvConfig = field(default_factory=EnvConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3))
    eval: EvalConfig = field(default_factory=EvalConfig)
    demonstrations: int = 512
    noise: float = 0.0
    text_weight: float = 0.0
    epochs: int = 3
    batch_size: int = 16
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("demonstrations", "epochs", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}: it must be 0 or more")
        if not 0 <= self.noise <= 1:
            raise ConfigError(f"noise is {self.noise}: it must be between 0 and 1")
        if not 0 <= self.text_weight < 1:
            raise ConfigError(f"text_weight is {self.text_weight}: it must be at least 0 and below 1")
        if self.model.path == "tiny" and self.rollout.context_limit > TINY_POSITIONS:
            raise ConfigError(
                f"rollout.context_limit is {self.rollout.context_limit}: the tiny model reads {TINY_POSITIONS} tokens"
            )


def demonstrate(cfg: Config, pool: EnvPool, file: Path, resume: bool) -> list[Trajectory]:
    """Let the expert play, or read what it played before.

    Raises:
        TooManyFailures: If no demonstration came about.
    """
    if resume and file.exists():
        kept = store.read(file)
        if len(kept) > cfg.demonstrations or not kept:
            raise ConfigError(f"{file} holds {len(kept)} demonstrations: the run cannot be resumed, use another --out")
        return kept
    expert = ExpertPolicy(noise=cfg.noise)
    tasks = group_tasks(cfg.seed, 0, cfg.demonstrations, 1)
    with progress() as bar:
        job = bar.add_task("demonstrations", total=len(tasks), note="")
        rollout = Rollout(pool, expert, cfg.rollout, cfg.env.options, lambda _: bar.advance(job))
        demos = [t for group in rollout.collect(tasks) for t in group.trajectories]
    if not demos:
        raise TooManyFailures(f"no demonstration succeeded: {'; '.join(rollout.stats.messages.values())}")
    store.write(file, demos)
    return demos


def tokenise(demo: Trajectory, renderer: Renderer, cfg: RolloutConfig) -> Trajectory:
    """The demonstration in the tokens of a model, as if the model had written it, as far as its context reaches.

    Raises:
        ConfigError: If the first prompt does not fit, or an answer is longer than the model may write.
    """
    row = Row(renderer, cfg.context_limit - cfg.max_new_tokens)
    context = make_context(cfg.context, renderer.escape, cfg.max_turns)
    turns: list[Turn] = []
    for k, message in enumerate(demo.messages):
        if message["role"] == "assistant":
            try:
                prompt_start = row.prompt(context.view(demo.messages[:k]), len(turns))
            except ContextFull as error:
                if turns:
                    break
                raise ConfigError(
                    f"{demo.env_id}: the first prompt does not fit: {error}; raise rollout.context_limit"
                ) from error
            ids = renderer.encode_reply(message["content"])
            if len(ids) > cfg.max_new_tokens:
                raise ConfigError(
                    f"the demonstrated answer {message['content'][:60]!r} has {len(ids)} tokens, but "
                    f"rollout.max_new_tokens is {cfg.max_new_tokens}: the model could not write it"
                )
            start, stop = row.sampled(ids, [0.0] * len(ids), -1)
            span = {"segment": len(row.segments) - 1, "prompt_start": prompt_start, "start": start, "stop": stop}
            turns.append(Turn(**{**vars(demo.turns[len(turns)]), **span}))
    return Trajectory(**{**vars(demo), "segments": row.segments, "turns": turns})


def loss_fn(out: TokenOutput, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Weighted negative log-likelihood; the metrics are of the demonstrator's tokens."""
    loss, written = sft_loss(out.logp), batch.advantages == 1.0
    return (batch.weights * loss).sum(), {"sft/nll": loss[written], "policy/entropy": out.entropy[written]}


def batches(demos: Sequence[Trajectory], cfg: Config) -> list[MicroBatch]:
    """Pack one optimizer step's demonstrations and weigh their tokens over all of them."""
    rows = [row for i, demo in enumerate(demos) for row in rows_of(demo, i)]
    for row in rows:
        row.advantages = [1.0 if m else cfg.text_weight for m in row.mask]
        if cfg.text_weight:
            row.mask = [0] + [1] * (len(row.mask) - 1)
    micro = pack(rows, cfg.optim.token_budget, cfg.optim.share_prefixes)
    total = sum(float(batch.advantages.sum()) for batch in micro)
    for batch in micro:
        batch.weights = batch.advantages / total
    return micro


def make_config(values: Mapping[str, Any]) -> Config:
    """Build the config.

    Raises:
        ConfigError: For an unknown key.
    """
    return build(Config, values)


def main(cfg: Config, out: str | Path, resume: bool = False) -> dict[str, Evaluation]:
    """Demonstrate, train, evaluate; the model is left in ``OUT/final``."""
    with cfg.env.pool() as pool:
        loaded = open_model(cfg.model, cfg.seed, None) if cfg.model.path != "tiny" else None
        if loaded:
            check_context(HFPolicy(loaded[0], loaded[2], "sft"), cfg.rollout)
        run = Run(out, cfg, resume)
        demos = demonstrate(cfg, pool, run.dir / "demonstrations.jsonl", resume)
        texts = [m["content"] for d in demos for m in d.messages]
        model, tokenizer, renderer = loaded or open_model(cfg.model, cfg.seed, texts)
        run.tokens(tokenizer)
        data = [tokenise(d, renderer, cfg.rollout) for d in demos]
        run.trajectories("demonstrations", data[:32])

        learner, policy = Learner(model, cfg.optim), HFPolicy(model, renderer, "sft")
        step = checkpoint.resume(run.dir / "checkpoints", learner) if resume else 0
        run.rewind(step)
        per_epoch = -(-len(data) // cfg.batch_size)
        total = per_epoch * cfg.epochs
        cfg.optim.check_steps(total)

        def save() -> None:
            state = {**learner.state(), "step": step}
            checkpoint.save(run.dir / "checkpoints" / f"step_{step:05d}", model, tokenizer, state)

        with progress() as bar:
            job = bar.add_task("sft", total=total, completed=step, note="")
            try:
                while step < total:
                    epoch, k = divmod(step, per_epoch)
                    order = seeding.data_rng(cfg.seed, epoch).permutation(len(data))
                    chosen = [data[i] for i in order[k * cfg.batch_size : (k + 1) * cfg.batch_size]]
                    with shielded():
                        started = time.perf_counter()
                        metrics = learner.step(batches(chosen, cfg), loss_fn)
                        step += 1
                        run.log(step, {**metrics, "time/update": time.perf_counter() - started})
                    bar.update(job, completed=step, note=f"nll {metrics['sft/nll']:.3f}")
                    if step % cfg.save_every == 0:
                        save()
            except (KeyboardInterrupt, AgentGymError):
                save()
                raise
            save()
            policy.weights_changed(step)
            checkpoint.save_model(run.dir / "final", model, tokenizer)
            episodes = cfg.eval.final_episodes
            job = bar.add_task("eval after", total=episodes, note="")
            result, played = evaluate(
                pool,
                policy,
                cfg.rollout,
                episodes,
                cfg.eval.seed,
                cfg.env.eval_options,
                on_episode=lambda _: bar.advance(job),
            )
            bar.update(job, note=result.note())
        run.trajectories("eval_after", played[:32])
        run.evaluated("after", step, result)
        run.finish()
    return run.evaluations()
