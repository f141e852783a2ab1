"""Action tokens a second with keys and values kept between turns, beside prefilling the whole prompt each turn.

Both sides play the same conversations of 8 turns with the same seeds and must sample the same tokens.
"""

import argparse
import asyncio
import time

import torch

from agentgym import seeding
from agentgym.learner import tiny
from agentgym.learner.model import prepare
from agentgym.policies.base import Request
from agentgym.policies.hf import HFPolicy
from agentgym.renderer import HFTokenizer, Renderer, Row
from agentgym.types import Message, Segment

TURNS, NEW_TOKENS = 8, 8
ROOM = "You are in the kitchen. There is a stove, a table that has a knife on it, and a fridge that is closed. "
EXITS = "To the north you see the corridor, to the south the pantry. Nothing else happens here. "


async def episode(policy: HFPolicy, index: int) -> list[Segment]:
    """Play one conversation."""
    session = policy.open()
    session.begin((index,), f"group {index // 8}")
    row = Row(policy.renderer)
    messages = [
        Message(role="system", content="You play a text game. Answer with one command. " * 4),
        Message(role="user", content=f"Task {index // 8}. " + (ROOM + EXITS) * 2),
    ]
    for turn in range(TURNS):
        row.prompt(messages, turn)
        rng = seeding.turn_rng(index, turn)
        generation = await session.generate(Request(list(row.segment.ids), NEW_TOKENS, rng))
        row.sampled(generation.ids, generation.logps, generation.version)
        text = policy.renderer.decode_reply(generation.ids)
        messages += [
            Message(role="assistant", content=text),
            Message(role="user", content=f"Turn {turn}. " + ROOM + EXITS),
        ]
    session.close()
    return row.segments


async def play(policy: HFPolicy, episodes: int) -> list[list[Segment]]:
    """Play all conversations at once."""
    return await asyncio.gather(*(episode(policy, i) for i in range(episodes)))


def measure(policy: HFPolicy, episodes: int) -> tuple[list[list[int]], int, float, float]:
    """Ids, action tokens, wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    rows = asyncio.run(play(policy, episodes))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tokens = sum(sum(s.mask) for segments in rows for s in segments)
    return [s.ids for segments in rows for s in segments], tokens, wall, cpu


def main() -> None:
    """Measure both sides three times in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = tiny.train_tokenizer([ROOM, EXITS], 400)
    model = prepare(tiny.build_model(tokenizer, 0, hidden=128, layers=3).eval())
    renderer = Renderer(HFTokenizer(tokenizer))
    sides = {"reuse": HFPolicy(model, renderer), "re-prefill": HFPolicy(model, renderer, reuse=False)}
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(3):
        ids = {}
        for name, policy in sides.items():
            ids[name], tokens, wall, cpu = measure(policy, args.episodes)
            speeds[name].append((tokens / wall, tokens / cpu))
        pairs = zip(*ids.values(), strict=True)
        same = sum(a == b for a, b in pairs)
        # a token can flip where the two sums round differently; nearly all conversations must be equal
        assert same >= 0.95 * len(ids["reuse"]), f"only {same} of {len(ids['reuse'])} conversations are equal"
    medians = {n: [sorted(v[i] for v in s)[1] for i in (0, 1)] for n, s in speeds.items()}
    print(f"{args.episodes} conversations, {TURNS} turns, {args.threads} thread(s); {same} equal")
    for name, (wall, cpu) in medians.items():
        print(f"{name:>10}: {wall:8.0f} action tokens/s wall, {cpu:8.0f} per CPU second")
    ratio = [a / b for a, b in zip(medians["reuse"], medians["re-prefill"], strict=True)]
    print(f"     ratio: {ratio[0]:.2f}x wall, {ratio[1]:.2f}x CPU")


if __name__ == "__main__":
    main()
