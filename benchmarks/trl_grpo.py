"""A GRPO step of agentgym beside TRL's `GRPOTrainer` with an environment, on the same pretrained weights.

Both sides play CookingWorld (TextWorldExpress) with SmolLM2-135M through tool calls, 6 turns of at most 48 tokens, in
groups of 8, in float32 on one torch thread, and take one AdamW step. The text they show the model is the same, token by
token; the model was warm-started on expert turns in that form. First TRL's loss and ours are computed from the same
ids, mask, old log-probabilities and advantages. Times are CPU seconds (all threads and child processes) and wall.

One command does all: it fetches the model, makes a virtual environment with TRL in build/trl (over the packages of
this one), warm-starts, and runs one side after the other. What is already there is used again.
"""

import argparse
import contextlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "trl"
PACKAGES = ("trl==1.16.0", "datasets==5.2.0", "accelerate==1.15.0")

GAME = {
    "game": "cookingworld",
    "game_params": {"numLocations": 3, "numIngredients": 2, "numDistractorItems": 3, "includeDoors": 0},
    "max_steps": 100,
}
ENV_ID = "agentgym/TextWorldExpress-v0"
TURNS, TURN_TOKENS, GROUP, CONTEXT = 6, 48, 8, 2048
SIDES = ("trl", "ours")
LR, EPS, CLIP_NORM = 1e-6, 0.2, 1.0


def act(command: str) -> str:
    """
    Run one command in the game.

    Args:
        command: The command, for example "take knife" or "move north".

    Returns:
        What you see after the command.
    """
    raise NotImplementedError


def chat_template() -> str:
    """TRL's Qwen3 form of a conversation with this tool, for messages that alternate between user and assistant."""
    from transformers.utils import get_json_schema

    tools = (
        "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
        "function signatures within <tools></tools> XML tags:\n<tools>\n"
        f"{json.dumps(get_json_schema(act))}\n</tools>\n\nFor each function call, return a json object with function "
        'name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, '
        '"arguments": <args-json-object>}\n</tool_call>'
    )
    return (
        "{%- set tools = " + json.dumps(tools) + " %}"
        "{%- for message in messages %}"
        "{{- '<|im_start|>' + message.role + '\n' }}"
        "{%- if message.role == 'user' and loop.index0 > 1 %}"
        "{{- '<tool_response>\n' + message.content + '\n</tool_response>' }}"
        "{%- else %}{{- message.content }}{%- endif %}"
        "{%- if message.role == 'system' %}{{- tools }}{%- endif %}"
        "{{- '<|im_end|>\n' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    )


def env_seed(step: int, group: int) -> int:
    """The game of a group, the same on both sides."""
    from agentgym import seeding

    return seeding.env_seed(0, step, group)


def cpu_seconds() -> float:
    """CPU time of this process, its ended children and those that run (the Java process of the game)."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + used.ru_utime + used.ru_stime
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that ended meanwhile
            for child in (task / "children").read_text().split():
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


class Clock:
    """CPU and wall seconds of the calls in between."""

    def __init__(self) -> None:
        self.start = (cpu_seconds(), time.perf_counter())

    def read(self) -> tuple[float, float]:
        """Seconds since the start."""
        return cpu_seconds() - self.start[0], time.perf_counter() - self.start[1]


# --- TRL


def run_trl(model_dir: Path, steps: int, groups: int, out: Path) -> None:
    """Run the trainer and keep what it measured, and every batch it trained on."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from agentgym.actions import ToolCall
    from agentgym.env_worker import instructions_of, make_env

    torch.set_num_threads(1)

    class Game:
        """The environment as TRL wants it: `act` is a tool."""

        def __init__(self) -> None:
            self._env = make_env(ENV_ID, GAME)

        def reset(self, seed: int, **_: Any) -> str:
            """Start a game."""
            self._score, self._over = 0.0, False
            return self._env.reset(seed=seed, options={"split": "train"})[0]

        def act(self, command: str) -> str:  # its docstring is set below: it is what the model reads
            if self._over:
                return "The game is over."
            text, reward, terminated, truncated, _ = self._env.step(command)
            self._score += reward
            self._over = terminated or truncated
            return text

        def get_reward(self) -> float:
            """The score of the game."""
            return self._score

    Game.act.__doc__ = act.__doc__
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    probe = Game()
    system = f"{instructions_of(probe._env)}\n{ToolCall.instructions}"
    prompt = [{"role": "system", "content": system}, {"role": "user", "content": ""}]
    rows = [{"prompt": prompt, "seed": env_seed(s, g)} for s in range(steps) for g in range(groups)]
    config = trl.GRPOConfig(
        output_dir=str(out.parent / "trainer"),
        per_device_train_batch_size=2,  # two rows of 1100 tokens need 7 GB
        gradient_accumulation_steps=groups * GROUP // 2,
        num_generations=GROUP,
        max_steps=steps,
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=CLIP_NORM,
        max_completion_length=CONTEXT - 512,
        max_tool_calling_iterations=TURNS - 1,
        generation_kwargs={"max_new_tokens": TURN_TOKENS},
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        epsilon=EPS,
        loss_type="grpo",
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    found: dict[str, Any] = {"steps": [], "batches": [], "rss_gb": 0.0}

    class Watch(TrainerCallback):
        """Times whole steps."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Start the clock."""
            self.clock = Clock()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Read it, and take the rollout off."""
            whole = self.clock.read()
            batch = found["batches"][-1]
            rollout = found["rollout"]
            extra = found.pop("extra", (0.0, 0.0))
            whole = (whole[0] - extra[0], whole[1] - extra[1])
            update = (whole[0] - rollout[0], whole[1] - rollout[1])
            tokens = sum(sum(mask) for mask in batch["mask"])
            found["steps"].append({"rollout": rollout, "update": update, "whole": whole, "tokens": tokens})
            print(f"trl step {state.global_step}: {tokens} tokens, rollout {rollout}, update {update}", flush=True)

    watch = Watch()
    trainer = trl.GRPOTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        environment_factory=Game,
        callbacks=[watch],
    )
    generate = trainer._generate_and_score_completions

    def timed(inputs: Any) -> Any:
        clock = Clock()
        batch = generate(inputs)
        found["rollout"] = clock.read()
        found["batches"].append(trl_rows(batch))
        if "check" not in found:
            clock = Clock()
            found["check"] = trl_check(trainer, batch)
            found["extra"] = clock.read()
        return batch

    trainer._generate_and_score_completions = timed
    trainer.train()
    found["rss_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found.pop("rollout")
    out.write_text(json.dumps(found))


def trl_rows(batch: Any) -> dict[str, list[Any]]:
    """A batch of TRL without padding: whole rows, the mask of trained tokens, one advantage a row."""
    rows: dict[str, list[Any]] = {"ids": [], "mask": [], "prompt": [], "advantages": batch["advantages"].tolist()}
    for i in range(len(batch["advantages"])):
        prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist()
        kept = batch["completion_mask"][i].bool()
        rows["ids"].append(prompt + batch["completion_ids"][i][kept].tolist())
        rows["mask"].append([0] * len(prompt) + batch["tool_mask"][i][kept].tolist())
        rows["prompt"].append(len(prompt))
    return rows


def trl_check(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """TRL's loss and gradient norm for advantages and old log-probabilities that use both sides of the clipping."""
    import torch

    generator = torch.Generator().manual_seed(0)
    model, accumulation = trainer.model, trainer.args.gradient_accumulation_steps
    trainer.current_gradient_accumulation_steps = accumulation
    count = len(batch["advantages"])
    advantages = torch.randn(count, generator=generator)
    keep = batch["completion_ids"].shape[1]
    losses, old_rows = [], []
    for rows in torch.arange(count).split(trainer.args.per_device_train_batch_size):
        part = {k: v[rows] for k, v in batch.items() if torch.is_tensor(v) and v.dim()}
        part |= {"num_items_in_batch": batch["num_items_in_batch"], "advantages": advantages[rows]}
        ids = torch.cat([part["prompt_ids"], part["completion_ids"]], 1)
        attention = torch.cat([part["prompt_mask"], part["completion_mask"]], 1)
        with torch.no_grad():
            logps = trainer._get_per_token_logps_and_entropies(model, ids, attention, keep)[0]
        old = logps + 0.3 * torch.randn(logps.shape, generator=generator)
        part["old_per_token_logps"] = old
        loss = trainer._compute_loss(model, part)
        loss.backward()
        losses.append(float(loss.detach()))
        mask = (part["completion_mask"] * part["tool_mask"]).bool()
        old_rows += [row[m].tolist() for row, m in zip(old, mask, strict=True)]
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))
    model.zero_grad(set_to_none=True)
    return {"loss": sum(losses), "grad_norm": norm, "advantages": advantages.tolist(), "old_logps": old_rows}


# --- agentgym


def run_ours(model_dir: Path, steps: int, groups: int, trl_file: Path, out: Path) -> None:
    """Check the loss, run the same steps, and update on TRL's batches too."""
    import torch
    from agentgym.trainers import grpo

    from agentgym.env_worker import EnvPool
    from agentgym.learner.learner import Learner, OptimConfig
    from agentgym.learner.model import load_model
    from agentgym.learner.pack import TrainRow
    from agentgym.policies.hf import HFPolicy
    from agentgym.rollout import Rollout, RolloutConfig, group_tasks

    torch.set_num_threads(1)
    theirs = json.loads(trl_file.read_text())
    cfg = grpo.make_config({"optim": {"lr": LR, "grad_clip": CLIP_NORM, "token_budget": 2**16}})
    loss_fn = grpo.make_loss(cfg.algo, None, 1.0)
    model, _, renderer = load_model(str(model_dir))
    model.eval()

    def rows_of(batch: dict[str, Any], old: list[list[float]], advantages: list[float]) -> list[TrainRow]:
        rows = []
        for i, (ids, mask) in enumerate(zip(batch["ids"], batch["mask"], strict=True)):
            given = iter(old[i])
            last = len(mask) - mask[::-1].index(1)
            logps = [next(given) if m else 0.0 for m in mask[:last]]
            rows.append(TrainRow(ids[:last], mask[:last], logps, [advantages[i] * m for m in mask[:last]], i))
        return rows

    check = theirs["check"]
    micro = packed(rows_of(theirs["batches"][0], check["old_logps"], check["advantages"]), cfg)
    loss, norm = loss_and_norm(model, micro, loss_fn)
    found: dict[str, Any] = {"check": {"loss": loss, "grad_norm": norm}, "steps": [], "theirs": []}

    learner, policy = Learner(model, OptimConfig(lr=LR, grad_clip=CLIP_NORM)), HFPolicy(model, renderer)
    play = RolloutConfig(
        max_turns=TURNS, max_new_tokens=TURN_TOKENS, context_limit=CONTEXT, codec="tool_call", parse_limit=1
    )
    with EnvPool(ENV_ID, GAME) as pool:
        rollout = Rollout(pool, policy, play, {"split": "train"})
        for step in range(steps):
            clock = Clock()
            collected = rollout.collect(group_tasks(0, step, groups, GROUP))
            rolled = clock.read()
            advantages = grpo.assign_advantages(cfg.algo, collected)
            trajectories = [t for g in collected for t in g.trajectories]
            learner.step(grpo.batches(trajectories, cfg), loss_fn)
            policy.weights_changed(step + 1)
            whole = clock.read()
            update = (whole[0] - rolled[0], whole[1] - rolled[1])
            tokens = sum(t.action_tokens for t in trajectories)
            found["steps"].append({"rollout": rolled, "update": update, "whole": whole, "tokens": tokens})
            same = [t.segments[0].ids[: t.turns[0].start] for t in trajectories]
            batch = theirs["batches"][step]
            prompts = [ids[:n] for ids, n in zip(batch["ids"], batch["prompt"], strict=True)]
            found["prompts_equal"] = found.get("prompts_equal", True) and same == prompts
            spread = float(abs(advantages).max())
            print(f"ours step {step}: {tokens} tokens, rollout {rolled}, update {update}, {spread=:.2f}", flush=True)
    for batch in theirs["batches"]:
        old = [[0.0] * sum(mask) for mask in batch["mask"]]
        clock = Clock()
        learner.step(packed(rows_of(batch, old, batch["advantages"]), cfg), loss_fn)
        found["theirs"].append({"update": clock.read(), "tokens": sum(sum(m) for m in batch["mask"])})
    found["rss_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    out.write_text(json.dumps(found))


def packed(rows: list[Any], cfg: Any) -> list[Any]:
    """Rows in micro-batches, weighted as one batch."""
    import torch

    from agentgym.learner.losses import token_weights
    from agentgym.learner.pack import pack

    micro = pack(rows, cfg.optim.token_budget)
    sequence = torch.cat([m.trajectory for m in micro])
    weights = token_weights(sequence, len(rows), "seq_mean_token_mean")
    for batch, part in zip(micro, weights.split([len(m.targets) for m in micro]), strict=True):
        batch.weights = part
    return micro


def loss_and_norm(model: Any, micro: list[Any], loss_fn: Callable[..., Any]) -> tuple[float, float]:
    """Loss and gradient norm of a batch."""
    from agentgym.learner.logprobs import token_logprobs

    total = 0.0
    for batch in micro:
        loss, _ = loss_fn(token_logprobs(model, batch), batch)
        loss.backward()
        total += float(loss.detach())
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))
    model.zero_grad(set_to_none=True)
    return total, norm


# --- both


def trl_python() -> Path:
    """The Python of a virtual environment with TRL, which sees the packages of this one too."""
    folder = BUILD / "venv"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"installing {', '.join(PACKAGES)} into {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        inner = next((folder / "lib").glob("python*/site-packages"))
        (inner / "over.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        pip = [str(python), "-m", "pip", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *PACKAGES], check=True)
        (folder / "ready").touch()
    return python


def warm_model() -> Path:
    """The folder of the warm-started model."""
    fetch = [sys.executable, str(ROOT / "scripts" / "fetch_smollm2.py")]
    source = subprocess.run(fetch, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    final = BUILD / "warm" / "final"
    if not final.exists():
        print("warm start on expert turns", flush=True)
        command = [sys.executable, __file__, "--side", "warm", "--model", source]
        subprocess.run(command, check=True)  # not in this process: it would hold the memory while the others run
    return final


def warm_start(source: Path, out: Path) -> None:
    """Short supervised fine-tuning, so that the model calls the tool."""
    from agentgym.trainers import sft

    from agentgym.learner import checkpoint
    from agentgym.learner.model import load_model

    model, tokenizer, _ = load_model(str(source))
    tokenizer.chat_template = chat_template()
    checkpoint.save_model(BUILD / "start", model, tokenizer)
    cfg = sft.make_config(
        {
            "env": {"id": ENV_ID, "kwargs": GAME},
            "rollout": {
                "max_turns": TURNS, "max_new_tokens": TURN_TOKENS, "context_limit": CONTEXT, "codec": "tool_call",
            },
            "model": {"path": str(BUILD / "start"), "threads": 1},
            "demonstrations": 32,
            "noise": 0.1,
            "epochs": 1,
            "batch_size": 2,
            "optim": {"lr": 1e-4, "warmup_steps": 4},
            "eval": {"final_episodes": 4},
        }
    )  # fmt: skip
    sft.main(cfg, out, resume=(out / "config.yaml").exists())


def main() -> None:
    """Run both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="steps a side; the first warms up (default: 4)")
    parser.add_argument("--groups", type=int, default=1, help="groups of 8 a step (default: 1)")
    parser.add_argument("--side", choices=("warm", "trl", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side == "warm":
        return warm_start(args.model, BUILD / "warm")
    if args.side == "trl":
        return run_trl(args.model, args.steps, args.groups, args.model.parent / "trl.json")
    if args.side == "ours":
        return run_ours(args.model, args.steps, args.groups, *(args.model.parent / f"{s}.json" for s in SIDES))
    BUILD.mkdir(parents=True, exist_ok=True)
    python, model = trl_python(), warm_model()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    for side, interpreter in (("trl", str(python)), ("ours", sys.executable)):
        sizes = ["--steps", str(args.steps), "--groups", str(args.groups)]
        command = [interpreter, __file__, "--side", side, "--model", str(model), *sizes]
        subprocess.run(command, check=True, env=environment)
    report(*(json.loads((model.parent / f"{side}.json").read_text()) for side in SIDES))


def rates(steps: list[dict[str, Any]], phase: str) -> tuple[float, float]:
    """Action tokens a second of CPU and of wall time: the median of the steps after the first."""
    per_step = [[step["tokens"] / seconds for seconds in step[phase]] for step in steps[1:]]
    cpu, wall = (statistics.median(column) for column in zip(*per_step, strict=True))
    return cpu, wall


def report(trl: dict[str, Any], ours: dict[str, Any]) -> None:
    """Print what was found."""
    print(f"\nload average {os.getloadavg()[0]:.1f}; first prompts equal on both sides: {ours['prompts_equal']}")
    a, b = trl["check"], ours["check"]
    for key in ("loss", "grad_norm"):
        print(f"{key:>9} of the same batch: TRL {a[key]:.7f}, ours {b[key]:.7f}, difference {abs(a[key] - b[key]):.1e}")
    for side, found in (("TRL", trl), ("ours", ours)):
        tokens = [step["tokens"] for step in found["steps"]]
        print(f"{side:>9}: action tokens of each step {tokens}; peak memory {found['rss_gb']:.1f} GB")
    rows = {
        "rollout": (rates(trl["steps"], "rollout"), rates(ours["steps"], "rollout")),
        "update": (rates(trl["steps"], "update"), rates(ours["steps"], "update")),
        "update, TRL's batches": (rates(trl["steps"], "update"), rates(ours["theirs"], "update")),
        "whole step": (rates(trl["steps"], "whole"), rates(ours["steps"], "whole")),
    }
    print(f"{'action tokens a second':<22} {'TRL/CPU s':>10} {'ours/CPU s':>10} {'ratio':>6}"
          f" {'TRL/s':>8} {'ours/s':>8} {'ratio':>6}")  # fmt: skip
    for name, ((cpu, wall), (our_cpu, our_wall)) in rows.items():
        print(f"{name:<22} {cpu:10.2f} {our_cpu:10.2f} {our_cpu / cpu:5.1f}x"
              f" {wall:8.2f} {our_wall:8.2f} {our_wall / wall:5.1f}x")  # fmt: skip


if __name__ == "__main__":
    main()
