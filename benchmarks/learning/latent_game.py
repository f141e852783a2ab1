"""The game of latent strategies alone, without a language model: Werewolf in which a speech is abstract.

Speeches of scripted players are clustered; Deep CFR solves the game in which a speech is its cluster, as in the paper
with three clusters of the Werewolf and two of the others, with fewer and more (the paper's ablation of k), and with
whom a speech accuses or clears (*arguments*). Three questions, over seeds:

* how often each side wins, with the strategy after some iterations of CFR, against the last strategy;
* how much a side gains that is trained afresh, by the same means, against the fixed strategy of the other side: a lower
  bound of what the best answer gains;
* how both fare in the game of text against scripted players, where a strategy is spoken by an example of its cluster.

Prints the tables and draws the picture of docs/learning.md.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import study
import torch
from agentgym.envs.werewolf import raw_env
from agentgym.envs.werewolf_game import CHANCE, TALK, TERMINAL, WOLVES, State
from agentgym.envs.werewolf_players import PLAYERS
from agentgym.envs.werewolf_rules import ROLES, WOLF, Rules
from agentgym.trainers.lspo_pairs import Ear
from agentgym.trainers.lspo_play import Strategist, spoken

from agentgym import latents
from agentgym.cfr_search import Decision, Game, Request, play
from agentgym.deep_cfr import DeepCFR, DeepCFRConfig
from agentgym.embeddings import make_encoder
from agentgym.evaluate import Estimate, wilson

CONDITIONS: dict[str, tuple[str, tuple[int, ...]]] = {
    "one": ("k = 1", (1, 1, 1, 1)),
    "clusters": ("k = 3, 2, 2, 2", (3, 2, 2, 2)),
    "many": ("k = 5, 4, 4, 4", (5, 4, 4, 4)),
    "arguments": ("k = 3, 2, 2, 2, arguments", (3, 2, 2, 2)),
}
"""Name -> title, and latent strategies of Werewolf, Seer, Doctor and Villager."""
SEATS = 4
"""Players: LSPO's small game (Werewolf, Seer, two Villagers), which a CPU solves in minutes."""
MEASURED = (2, 5, 10, 20)
"""Iterations of CFR after which the average strategy is measured."""
ANSWER = 10
"""Iterations of the side that is trained against a fixed one."""
TALKED = 300
"""Games of scripted players whose speeches are clustered."""
GAMES = 1000
"""Games of each seed and cell."""
TEXT_GAMES = 500
"""The same, of games of text."""
CFR = {"traversals": 100, "depth": 1, "scale": 300.0, "hidden": (64, 64), "steps": 100, "batch": 256}
AVERAGE = 300
"""Adam steps of the network of the average strategy."""
SIDES = ("wolves", "village")
OPPONENTS = ("scripted", "cautious")


def speeches(seed: int) -> dict[int, list[str]]:
    """What is said in games between scripted players of all kinds, by role."""
    said: dict[int, list[str]] = {role: [] for role in range(len(ROLES))}
    rng = np.random.default_rng([seed, 1])
    for number in range(TALKED):
        table = raw_env(brief=True, players=SEATS)
        table.reset(seed=1_000_000 * seed + number)
        who = rng.choice(list(PLAYERS), SEATS)
        while not over(table):
            seen = table.infos[table.agent_selection]["view"]
            table.step(PLAYERS[who[seen.seat]](seen, rng))
        for (_, seat), text in table.speeches.items():
            said[table.game.roles[seat]].append(latents.relative(text, seat, SEATS))
    return said


def over(table: Any) -> bool:
    """Whether a game has ended."""
    return any(table.terminations.values()) or any(table.truncations.values())


def abstract_game(known: latents.Latents) -> Game:
    """The game over latent strategies."""
    rules = Rules(SEATS, latents=known.counts, codebook=known.codebook, stances=known.stances)
    return Game(State(rules), rules.n, rules.actions, rules.width, len(ROLES), lambda state, seat: state.roles[seat])


class Answer(DeepCFR):
    """Deep CFR of one side against the fixed average strategy of the other side."""

    def __init__(self, fixed: DeepCFR, side: str, seed: int):
        """Start afresh."""
        super().__init__(fixed.game, fixed.config, seed)
        self.fixed, self.own = fixed, {role for role in range(len(ROLES)) if (role == WOLF) == (side == "wolves")}

    def strategy(self, role: int, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Its own strategy, or the fixed one."""
        return super().strategy(role, x, mask) if role in self.own else self.fixed.average(x, mask)

    def traverse(self) -> None:
        """Only seats of the own side learn."""
        seats = np.repeat(range(self.game.seats), self.config.traversals).tolist()
        find, many = self._traversals, self.config.concurrent
        games = play(map(find.sample_game, seats), self.decide, many)
        starts = [(s, seat) for seat, game in zip(seats, games, strict=True) for s in game if s.roles[seat] in self.own]
        play((find.search(state, seat, 0) for state, seat in starts), self.decide, many)


def match(wolves: DeepCFR, village: DeepCFR, games: int, seed: int) -> int:
    """Games between two average strategies that the Werewolves win."""
    rng, game = np.random.default_rng(seed), wolves.game

    def one() -> Generator[Request, Decision, bool]:
        state = game.root
        while (mover := state.player()) != TERMINAL:
            state = state.child(state.sample_chance(rng) if mover == CHANCE else (yield Request(state, mover)).action)
        return state.winner == WOLVES

    def decide(requests: Sequence[Request]) -> list[Decision]:
        x, mask = wolves.observe([request[:2] for request in requests])
        wolf = np.array([request.state.roles[request.seat] == WOLF for request in requests])
        sigma = np.empty(mask.shape)
        for side, at in ((wolves, wolf), (village, ~wolf)):
            if at.any():
                sigma[at] = side.average(x[at], mask[at])
        below = sigma.cumsum(1)
        actions = (below / below[:, -1:] > rng.random((len(x), 1))).argmax(1)
        return list(map(Decision, x, mask, sigma, actions.tolist()))

    return sum(play((one() for _ in range(games)), decide, 512))


def text_match(strategist: Strategist, known: latents.Latents, side: str, opponent: str, games: int, seed: int) -> int:
    """Games of text that a strategy wins on a side, against a scripted player on the other one."""
    won, n = 0, strategist.rules.n
    for number in range(games):
        rng = np.random.default_rng([seed, number])
        table = raw_env(brief=True, players=SEATS)
        table.reset(seed=number)
        while not over(table):
            info = table.infos[table.agent_selection]
            seen = info["view"]
            if (seen.role == WOLF) != (side == "wolves"):
                table.step(PLAYERS[opponent](seen, rng))
                continue
            state = strategist.state(info["record"])
            if state.phase != TALK:
                table.step(seen.commands[state.legal().index(strategist.draw(state, rng))])
                continue
            latent, target = strategist.speech(state, rng)
            texts = speeches_of(known, seen.role, latent)
            if target == n:  # where nobody is named, the example says who
                others = [seat for seat in seen.alive if seat != seen.seat]
                target = others[int(rng.integers(len(others)))]
            table.step(spoken(texts[int(rng.integers(len(texts)))], seen.seat, target, n))
        won += table.infos["player_0"]["winner"] == side
    return won


def speeches_of(known: latents.Latents, role: int, latent: int) -> list[str]:
    """All speeches of a latent strategy, as often as they were said."""
    clusters = known.roles[role]
    at = np.flatnonzero(clusters.labels == latent)
    return [clusters.texts[i] for i in at for _ in range(int(clusters.weights[i]))] or ["I have nothing to say."]


def one_run(condition: str, seed: int, folder: Path) -> None:
    """Solve, and measure; what was measured is kept."""
    torch.set_num_threads(1)
    file = folder / "run" / "evaluation.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    encoder, arguments = make_encoder("minilm"), condition == "arguments"
    known = latents.fit(speeches(seed), CONDITIONS[condition][1], encoder, seed, arguments=arguments)
    game, config = abstract_game(known), DeepCFRConfig(**CFR)
    found: dict[str, Any] = {"latents": known.counts, "stances": known.stances, "wins": {}}
    solver, kept = DeepCFR(game, config, seed), {}
    for t in range(1, MEASURED[-1] + 1):
        solver.step()
        if t in MEASURED:
            solver.fit_average(AVERAGE)
            kept[t] = DeepCFR(game, config, 0)
            kept[t].average_net = solver.average_net
    last = kept[MEASURED[-1]]
    for t in MEASURED:
        found["wins"][str(t)] = measured(kept[t], last, seed)
        file.write_text(json.dumps(found, indent=1))
    strategist = Strategist(last, game.root.rules, Ear(known, SEATS))
    found["after"] = {
        f"{side} against {opponent}": text_match(strategist, known, side, opponent, TEXT_GAMES, seed)
        for opponent in OPPONENTS
        for side in SIDES
    }
    file.write_text(json.dumps(found, indent=1))


def measured(policy: DeepCFR, last: DeepCFR, seed: int) -> dict[str, int]:
    """Games that a side wins: against the last strategy, against itself (the village), and trained against it."""
    cell = {
        "wolves": match(policy, last, GAMES, 10 * seed),
        "village": GAMES - match(last, policy, GAMES, 10 * seed + 1),
        "self": GAMES - match(policy, policy, GAMES, 10 * seed + 2),
    }
    for side in SIDES:
        answer = Answer(policy, side, 100 + seed)
        for _ in range(ANSWER):
            answer.step()
        answer.fit_average(AVERAGE)
        wolves = match(*((answer, policy) if side == "wolves" else (policy, answer)), GAMES, 10 * seed + 3)
        cell[f"answer of {side}"] = wolves if side == "wolves" else GAMES - wolves
    return cell


def report(out: Path, seeds: int) -> None:
    """Print the tables and draw the picture."""
    runs = {
        c: [json.loads((out / f"{c}-{s}" / "run" / "evaluation.json").read_text()) for s in range(seeds)]
        for c in CONDITIONS
    }

    def cell(condition: str, *keys: str, games: int = GAMES) -> Estimate:
        won = 0
        for run in runs[condition]:
            value: Any = run
            for key in keys:
                value = value[key]
            won += value
        return wilson(won, games * seeds)

    def shown(condition: str, *keys: str, games: int = GAMES) -> str:
        found = cell(condition, *keys, games=games)
        return f"{100 * found.mean:.1f} [{100 * found.ci95[0]:.1f}, {100 * found.ci95[1]:.1f}]"

    columns = ("wolves", "village", "self", "answer of wolves", "answer of village")
    head = ["", "iterations", "Werewolves, against the last", "village, against the last", "village, against itself"]
    head += ["Werewolves trained against it", "village trained against it"]
    grid = itertools.product(CONDITIONS, MEASURED)
    rows = [[CONDITIONS[c][0], str(t), *(shown(c, "wins", str(t), key) for key in columns)] for c, t in grid]
    print(study.table(head, rows), "\n")
    cells = [f"{side} against {opponent}" for opponent in OPPONENTS for side in SIDES]
    print(
        study.table(
            ["in text, % won", *cells],
            [[CONDITIONS[c][0], *(shown(c, "after", name, games=TEXT_GAMES) for name in cells)] for c in CONDITIONS],
        )
    )

    def panel(condition: str) -> Any:
        def draw(axes: Any) -> None:
            lines = (("self", "against itself"), ("village", "against the last"), ("answer of village", "trained anew"))
            for (key, label), colour in zip(lines, study.COLOURS, strict=False):
                found = [cell(condition, "wins", str(t), key) for t in MEASURED]
                means = [100 * one.mean for one in found]
                reach = np.array([[100 * abs(one.mean - end) for end in one.ci95] for one in found]).T
                axes.errorbar(MEASURED, means, reach, color=colour, marker="o", capsize=3, label=f"village, {label}")
            found = [100 - 100 * cell(condition, "wins", str(t), "answer of wolves").mean for t in MEASURED]
            axes.plot(MEASURED, found, color=study.COLOURS[3], marker="s", label="village, Werewolves trained anew")
            axes.set(title=CONDITIONS[condition][0], xlabel="iterations of CFR", ylabel="village wins, %", ylim=(0, 75))

        return draw

    study.figure([panel(condition) for condition in CONDITIONS], study.DOCS / "latent_game.png")


def main() -> None:
    """Run what is missing and report."""
    args = study.arguments(__doc__, "latent_game")
    if args.run:
        condition, seed = args.run.split("-")
        one_run(condition, int(seed), args.out / args.run)
        return
    study.run_all([f"{c}-{s}" for s in range(args.seeds) for c in CONDITIONS], args)
    report(args.out, args.seeds)


if __name__ == "__main__":
    main()
