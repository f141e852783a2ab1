"""CPU time of an update of each trainer beside that of GRPO, or of PPO for those with a critic, on the same tokens.

Every trainer does one training step from the same model with the same seed, so that all of them learn from the very
same episodes (their number of tokens and their returns must agree). Printed are medians over the seeds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentgym.trainers import epo, gigpo, grpo, poad, ppo, sft

from agentgym.config import overlay
from agentgym.training import Training

COMMON: dict[str, Any] = {
    "env": {"id": "agentgym/Overcooked-v0"},
    "rollout": {"codec": "plain", "max_turns": 12, "max_new_tokens": 16, "context_limit": 2048},
    "eval": {"final_episodes": 1},
}
RL = {"steps": 1, "minibatches": 1, "updates": 1, "optim": {"lr": 1e-4}}
GROUPS, EPISODES = {"groups": 4, "group_size": 8}, {"episodes": 32}
TRAINERS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "grpo": (grpo, "grpo", GROUPS),
    "gigpo": (gigpo, "grpo", GROUPS),
    "epo over grpo": (epo, "grpo", {"base": "grpo", **GROUPS}),
    "ppo": (ppo, "ppo", EPISODES),
    "epo over ppo": (epo, "ppo", {"base": "ppo", **EPISODES}),
    "poad": (poad, "ppo", {"algo": {"acting": "free"}, **EPISODES}),
}


@contextmanager
def measured(spent: list[float]) -> Iterator[None]:
    """Note the CPU seconds of every update inside."""
    plain = Training.update

    @contextmanager
    def update(self: Training, *args: Any, **kwargs: Any) -> Iterator[dict[str, Any]]:
        with plain(self, *args, **kwargs) as metrics:
            started = time.process_time()
            yield metrics
            spent.extend((time.process_time() - started, metrics["tokens/action"], metrics["reward/mean"]))

    Training.update = update  # type: ignore[method-assign]
    try:
        yield
    finally:
        Training.update = plain  # type: ignore[method-assign]


def one_step(trainer: Any, settings: Mapping[str, Any], out: Path) -> tuple[float, float, float]:
    """CPU seconds of an update, tokens an episode, mean return."""
    spent: list[float] = []
    with measured(spent):
        trainer.main(trainer.make_config(settings), out)
    return spent[0], spent[1], spent[2]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="training steps of each trainer (default: 5)")
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in TRAINERS}
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        sft.main(sft.make_config(overlay(COMMON, {"demonstrations": 64, "epochs": 2, "noise": 0.3})), top / "sft")
        start = overlay(COMMON, {**RL, "model": {"path": str(top / "sft" / "final")}})
        for seed in range(args.seeds):
            work: dict[str, set[tuple[float, float]]] = {}
            for name, (trainer, base, settings) in TRAINERS.items():
                changes = {**settings, "seed": seed}
                cpu, *same = one_step(trainer, overlay(start, changes), top / f"{name}-{seed}")
                times[name].append(cpu)
                work.setdefault(base, set()).add((same[0], same[1]))
            assert all(len(found) == 1 for found in work.values()), work
    print(f"{'update of':<16}{'CPU s':>8}  beside its base")
    for name, (_, base, _) in TRAINERS.items():
        ratio = statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))
        print(f"{name:<16}{statistics.median(times[name]):8.2f}  {ratio:.2f}x {base}")


if __name__ == "__main__":
    main()
