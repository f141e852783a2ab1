"""A synthetic run folder, true in structure to what a trainer leaves: for the tests of the report and the figures."""

import json
import re

import numpy as np

from agentgym import store
from agentgym.types import Edit, Segment, Status, Trajectory, Turn

ROOMS = ("pantry", "kitchen", "corridor", "cellar", "attic", "garden")
SYSTEM = "You play a text game. Answer with one command inside <action> and </action>."
PIECES: list[str] = []


def encode(text):
    """Word-level ids; new words join the vocabulary."""
    ids = []
    for piece in re.findall(r" ?[^\s]+|\s", text):
        if piece not in PIECES:
            PIECES.append(piece)
        ids.append(PIECES.index(piece))
    return ids


def episode(rng, seed, group, member, skill, version, learned=True):
    """A walk through rooms to a coin, with parse errors, and a fork when the thoughts are stripped."""
    trajectory = Trajectory("agentgym/TextWorld-Coin-v0", seed, group, member, int(rng.integers(2**31)), "Qwen3-0.6B")
    segment = Segment()
    segment.append_context(encode(f"<|system|>\n{SYSTEM}\n"))
    trajectory.messages = [{"role": "system", "content": SYSTEM}]
    trajectory.segments = [segment]
    fork_at = int(rng.integers(2, 5)) if rng.random() < 0.5 else -1
    rooms = np.random.default_rng(seed).permutation(ROOMS)
    for number in range(int(rng.integers(4, 9))):
        room, onward = rooms[number % 6], rooms[(number + 1) % 6]
        observation = (
            f"-= {room.title()} =-\nYou arrive in a {room}. A normal kind of place. You see a closed gate "
            f"leading east and an open door leading to the {onward}.\n\nOn the table lies a note."
        )
        if number == fork_at:
            segment = fork(trajectory, number)
        prompt_start = len(segment)
        segment.append_context(encode(f"<|user|>\n{observation}\n<|assistant|>\n"))
        start = len(segment)
        found = rng.random() < 0.12 + 0.2 * skill
        action = "take coin" if found else str(rng.choice(["go east", "go west", f"go to {onward}", "open gate"]))
        failed = rng.random() < 0.1
        text = f"The exit to the {onward} may be east of here. <action>{action}"
        text += "" if failed else "</action>"
        ids = encode(text) + encode("<|end|>")
        segment.append_sampled(ids, [float(np.float32(-x)) for x in rng.exponential(0.6, len(ids))], version)
        trajectory.turns.append(
            Turn(
                *(observation, len(trajectory.segments) - 1, prompt_start, start, len(segment), text),
                action=None if failed else action,
                parse_error="no </action> after <action>" if failed else None,
                reward=0.0 if failed else float(found),
                finish="length" if failed else "stop",
                policy_s=float(rng.exponential(0.6)),
                env_s=float(rng.exponential(0.01)),
            )
        )
        if found and not failed:
            break
    trajectory.success = trajectory.turns[-1].reward == 1.0
    trajectory.status = Status.DONE if trajectory.success else Status.TRUNCATED
    trajectory.info = {"score": int(trajectory.success), "max_score": 1}
    trajectory.final_observation = "You take the coin. You win!" if trajectory.success else "You are lost."
    if rng.random() < 0.02:
        trajectory.status, trajectory.success, trajectory.error = Status.ENV_ERROR, None, "the game process ended"
    if learned:
        for row in trajectory.segments:
            scale = trajectory.episode_return - 0.4
            row.advantages = [float(np.float32(m * scale * rng.uniform(0.6, 1))) for m in row.mask]
    return trajectory


def fork(trajectory, turn):
    """Begin a row without the first thought, as a chat template that strips thoughts does."""
    old, first = trajectory.segments[-1], trajectory.turns[0]
    kept, cut = first.start, first.start + 10
    segment = Segment(edit=Edit(turn, kept, len(old) - kept, first.text, first.text[first.text.index("<action>") :]))
    segment.append_context(old.ids[:kept] + old.ids[cut:])
    trajectory.segments.append(segment)
    return segment


def make_run(folder, count=64, steps=60, seed=0):
    """Write a run folder as a trainer leaves it, with about ``count`` trajectories."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(steps):
            skill = step / steps
            row = {
                "step": step,
                "reward/mean": 0.2 + 0.6 * skill + rng.normal(0, 0.07),
                "reward/std": 0.4 - 0.1 * skill + rng.normal(0, 0.02),
                "episode/success": float(np.clip(0.2 + 0.6 * skill + rng.normal(0, 0.08), 0, 1)),
                "episode/turns": 8 - 3 * skill + rng.normal(0, 0.3),
                "tokens/action": 210 - 60 * skill + rng.normal(0, 9),
                "policy/entropy": 1.3 * np.exp(-2 * skill) + rng.normal(0, 0.03),
                "policy/kl_ref": 0.02 * skill**2 + abs(rng.normal(0, 0.0004)),
                "policy/clip_frac": abs(rng.normal(0.04, 0.01)),
                "group/zero_std_frac": 0.1 + 0.3 * skill,
                "optim/grad_norm": rng.lognormal(-0.5, 0.3),
                "optim/lr": 1e-6,
                "time/rollout": rng.normal(21, 2),
                "time/update": rng.normal(9, 0.6),
            }
            if step % 10 == 0:
                mean = 0.22 + 0.55 * skill
                row |= {"eval/success": mean, "eval/success_lo": mean - 0.09, "eval/success_hi": mean + 0.09}
                row |= {"eval/return": mean}
            file.write(json.dumps(row) + "\n")
    (folder / "config.yaml").write_text(
        "preset: grpo\nmodel:\n  path: Qwen/Qwen3-0.6B\nenv:\n  id: agentgym/TextWorld-Coin-v0\nseed: 7\n"
        "rollout:\n  groups: 16\n  members: 8\n  max_turns: 10\noptim:\n  lr: 1.0e-06\n  clip: 0.2\n"
    )
    names = ["eval_after", "eval_before", "expert", *(f"step_{10 * i:05d}" for i in range(5))]
    groups = -(-count // 8 // len(names))
    for number, name in enumerate(names):
        store.write(
            folder / "trajectories" / f"{name}.jsonl",
            [
                episode(rng, 100 * number + g, f"coin-{100 * number + g}", m, number / 8, number, number > 2)
                for g in range(groups)
                for m in range(8)
            ],
        )
    before = {"success": (0.22, 0.13, 0.31), "return": (0.22, 0.13, 0.31), "turns": (7.9, 7.4, 8.4)}
    after = {"success": (0.77, 0.68, 0.85), "return": (0.77, 0.68, 0.85), "turns": (5.2, 4.7, 5.6)}
    before["tokens"], after["tokens"] = (212.0, 203.0, 221.0), (151.0, 144.0, 158.0)
    sides = {
        side: {name: {"mean": m, "ci95": [lo, hi]} for name, (m, lo, hi) in values.items()}
        for side, values in (("before", before), ("after", after))
    }
    (folder / "evaluation.json").write_text(json.dumps(sides))
    (folder / "tokens.json").write_text(json.dumps(PIECES))
    return folder
