import itertools

import gymnasium as gym
import numpy as np
import pytest
from agentgym.envs.overcooked import DISCOUNT, OvercookedEnv, tell
from agentgym.envs.overcooked_kitchen import CHOPPING, MAP, TASKS, VIEW, Kitchen, State
from gymnasium.error import ResetNeeded

import agentgym  # noqa: F401
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError
from agentgym.evaluate import evaluate
from agentgym.policies.scripted import ExpertPolicy
from agentgym.rollout import RolloutConfig

KITCHENS = {task: Kitchen(task) for task in TASKS}
TOMATO, BOTH = KITCHENS["tomato-salad"], KITCHENS["tomato-lettuce-salad"]


def outcomes(kitchen, state):
    """Macro-action -> its primitive steps."""
    return {text: list(kitchen.play(state, macro)) for text, macro in kitchen.macros(state).items()}


def reachable(kitchen):
    """Every state that can be reached from any start, with what each macro-action does there."""
    found = {kitchen.start(cell): None for cell in kitchen.floor}
    queue = list(found)
    for state in queue:
        found[state] = outcomes(kitchen, state)
        for steps in found[state].values():
            after, event = steps[-1]
            if event != "delivered" and after not in found:
                found[after] = None
                queue.append(after)
    return found


GRAPHS = {task: reachable(kitchen) for task, kitchen in KITCHENS.items()}


def fewest_steps(graph):
    """Primitive steps to a delivery from every state (Bellman-Ford)."""
    best = dict.fromkeys(graph, np.inf)
    changed = True
    while changed:
        changed = False
        for state, found in graph.items():
            for steps in found.values():
                after, event = steps[-1]
                cost = len(steps) + (0 if event == "delivered" else best[after])
                if cost < best[state]:
                    best[state], changed = cost, True
    return best


def act(kitchen, state, *texts):
    for text in texts:
        *_, (state, _) = kitchen.play(state, kitchen.macros(state)[text])
    return state


def at(kitchen, x=3, y=3):
    return kitchen.start((x, y))


def follow(env, seed, **options):
    _, info = env.reset(seed=seed, options={"expert": True, **options})
    said, rewards, over = [], [], False
    while not over:
        said.append(info["expert_action"])
        _, reward, terminated, truncated, info = env.step(said[-1])
        rewards.append(reward)
        over = terminated or truncated
    return said, rewards, info


# ---- the kitchen -----------------------------------------------------------------------------------------


def test_map():
    assert [len(row) for row in MAP] == [7] * 7
    assert {MAP[y][x] for x, y in TOMATO.floor} == {"."}
    assert sorted("".join(MAP).replace("#", "").replace(".", "")) == sorted("TLO12DP")
    for kitchen in KITCHENS.values():
        assert len(kitchen.floor) == 25
        assert len(set(kitchen.stands.values())) == len(kitchen.stands)  # no cell touches two things
        for letter, (x, y) in kitchen.stands.items():
            assert (x, y) in kitchen.floor
            assert abs(x - kitchen.cells[letter][0]) + abs(y - kitchen.cells[letter][1]) == 1
    assert set(TOMATO.cells) == set("TP1D")


@pytest.mark.parametrize(("task", "slots", "states"), [("tomato-salad", 5, 44), ("tomato-lettuce-salad", 8, 1084)])
def test_always_as_many_macro_actions_and_all_different(task, slots, states):
    graph = GRAPHS[task]
    assert len(graph) == states
    assert {len(found) for found in graph.values()} == {slots}
    for state in graph:
        assert len(KITCHENS[task].macros(state)) == slots
    texts = {text for found in graph.values() for text in found}
    assert not any("," in text for text in texts)
    assert max(len(text.split()) for text in texts) <= 8


@pytest.mark.parametrize("task", TASKS)
def test_every_macro_action_walks_cell_by_cell(task):
    """One primitive step at least; each goes to a neighbouring cell of the floor or stays; the last one acts."""
    kitchen = KITCHENS[task]
    for state, found in GRAPHS[task].items():
        for steps in found.values():
            assert len(steps) >= 1
            cells = [state.at, *(step.at for step, _ in steps)]
            for one, other in itertools.pairwise(cells):
                assert other in kitchen.floor
                assert abs(one[0] - other[0]) + abs(one[1] - other[1]) <= 1
            moved = sum(one != other for one, other in itertools.pairwise(cells))
            end = cells[-1]
            assert moved == abs(end[0] - state.at[0]) + abs(end[1] - state.at[1])  # no wall is in the way here
            assert all(event == "" for _, event in steps[:-1])
            assert all(step._replace(at=state.at) == state for step, _ in steps[:-1])


@pytest.mark.parametrize("task", TASKS)
def test_nothing_is_lost_or_doubled(task):
    for state in GRAPHS[task]:
        assert state.places.count("hand") + state.has_plate <= 1
        for board in "12":
            assert state.places.count(board) <= 1
        for place, chopped in zip(state.places, state.chopped, strict=True):
            assert place in ("table", "hand", "plate", *KITCHENS[task].boards)
            assert chopped or place != "plate"
            assert not chopped or place != "table"


@pytest.mark.parametrize(("task", "nearest", "farthest"), [("tomato-salad", 19, 26), ("tomato-lettuce-salad", 38, 45)])
def test_no_dead_ends_and_an_expert_of_the_fewest_steps(task, nearest, farthest):
    kitchen, best = KITCHENS[task], fewest_steps(GRAPHS[task])
    assert max(best.values()) < 200 / 3
    starts = [best[kitchen.start(cell)] for cell in kitchen.floor]
    assert (min(starts), max(starts)) == (nearest, farthest)
    env = OvercookedEnv(task, expert=True)
    seen = set()
    for seed in range(60):
        env.reset(seed=seed)
        state = env._state
        seen.add(state.at)
        _, _, info = follow(env, seed)
        assert info["primitive_steps"] == best[state]
        assert info["success"]
        assert info["score"] == info["max_score"]
    assert len(seen) > 20


@pytest.mark.parametrize("task", TASKS)
def test_what_is_told_is_enough(task):
    """Told the same, the expert does the same: a policy without memory can do it."""
    kitchen, seen = KITCHENS[task], {}
    for cell in kitchen.floor:
        env = OvercookedEnv(task, expert=True)
        env.reset(seed=0)
        env._state = kitchen.start(cell)
        text, info, over = tell(kitchen, env._state), env._info(), False
        while not over:
            assert seen.setdefault(text, info["expert_action"]) == info["expert_action"]
            text, _, over, _, info = env.step(info["expert_action"])
    assert len(seen) > 10


@pytest.mark.parametrize("task", TASKS)
def test_what_is_out_of_sight_changes_neither_text_nor_words(task):
    """States that look the same from where the cook stands have the same text and macro-actions."""
    kitchen, told = KITCHENS[task], {}
    for state in GRAPHS[task]:
        held = kitchen.held(state)
        boards = tuple(
            (kitchen.on(state, b), kitchen.on(state, b) and kitchen.word(state, kitchen.on(state, b)))
            for b in kitchen.boards
            if near(state.at, kitchen.cells[b])
        )
        tables = tuple(
            place == "table" and near(state.at, kitchen.cells[food[0].upper()])
            for food, place in zip(kitchen.foods, state.places, strict=True)
        )
        plate = (state.has_plate or near(state.at, kitchen.cells["P"])) and tuple(kitchen.on_plate(state))
        hand = held if held in ("", "plate") else kitchen.word(state, held)
        view = state.at, hand, boards, tables, plate
        found = tell(kitchen, state), sorted(kitchen.macros(state))
        assert told.setdefault(view, found) == found
    assert len(told) < len(GRAPHS[task])


def near(one, other):
    return max(abs(one[0] - other[0]), abs(one[1] - other[1])) <= VIEW


def test_solution_step_by_step():
    state = at(TOMATO)
    done = (
        ("pick up the tomato", 4, ""),
        ("put the tomato on the cutting board", 3, ""),
        ("chop the tomato", CHOPPING, "tomato"),
        ("pick up the tomato", 1, ""),
        ("put the tomato on the plate", 6, ""),
        ("take the plate", 1, ""),
        ("serve the dish", 4, "delivered"),
    )
    for text, count, event in done:
        steps = list(TOMATO.play(state, TOMATO.macros(state)[text]))
        assert (len(steps), steps[-1][1]) == (count, event)
        state = steps[-1][0]
    assert state == State(TOMATO.stands["D"], ("plate",), (True,), True)


def test_words_follow_hands_and_boards():
    state = at(BOTH)
    assert list(BOTH.macros(state)) == [
        *("pick up the tomato", "pick up the lettuce", "pick up the onion", "take the plate"),
        *("walk to the first cutting board", "walk to the second cutting board", "serve nothing", "chop nothing"),
    ]
    state = act(BOTH, state, "pick up the tomato")
    assert list(BOTH.macros(state))[3:] == [
        *("take the plate", "put the tomato on the first cutting board", "put the tomato on the second cutting board"),
        *("serve the tomato", "chop nothing"),
    ]
    state = act(BOTH, state, "put the tomato on the first cutting board")
    assert list(BOTH.macros(state))[-1] == "chop the tomato"
    state = act(BOTH, state, "chop the tomato")
    assert list(BOTH.macros(state))[-1] == "chop nothing"
    state = act(BOTH, state, "take the plate")
    # the board is out of sight: that the tomato is on it shows only there
    assert list(BOTH.macros(state))[3:] == [
        *("put the plate back", "walk to the first cutting board", "walk to the second cutting board"),
        *("serve the empty plate", "chop nothing"),
    ]
    state = act(BOTH, state, "walk to the first cutting board")
    assert list(BOTH.macros(state))[4] == "put the tomato on the plate"
    state = act(BOTH, state, "put the tomato on the plate")
    assert list(BOTH.macros(state))[4:7] == [
        *("walk to the first cutting board", "walk to the second cutting board", "serve the dish"),
    ]


def test_walking_puts_the_cook_where_chopping_is_possible():
    state = act(TOMATO, at(TOMATO), "pick up the tomato", "put the tomato on the cutting board", "take the plate")
    state = act(TOMATO, state, "put the plate back")
    assert "chop nothing" in TOMATO.macros(state)
    state = act(TOMATO, state, "walk to the cutting board")
    assert "chop the tomato" in TOMATO.macros(state)
    with_plate = act(TOMATO, state, "take the plate", "walk to the cutting board")
    assert "chop nothing" in TOMATO.macros(with_plate)


@pytest.mark.parametrize("task", TASKS)
def test_impossible_slots_are_one_step_of_waiting(task):
    kitchen = KITCHENS[task]
    for state, found in GRAPHS[task].items():
        held = kitchen.held(state)
        for text in ("serve nothing", "chop nothing", *(f"pick up the {food}" for food in kitchen.foods if held)):
            if text in found:
                assert found[text] == [(state, "")]


def test_an_occupied_board_out_of_sight_takes_nothing_more():
    state = act(BOTH, at(BOTH), "pick up the tomato", "put the tomato on the second cutting board", "pick up the onion")
    text = "put the onion on the second cutting board"
    assert not BOTH.in_sight(state, "2")
    after = act(BOTH, state, text)
    assert after == state._replace(at=BOTH.stands["2"])
    assert text not in BOTH.macros(after)


@pytest.mark.parametrize(
    ("before", "text"),
    [
        (["pick up the onion"], "serve the onion"),
        (["take the plate"], "serve the empty plate"),
        (
            [
                *("pick up the tomato", "put the tomato on the first cutting board", "chop the tomato"),
                *("pick up the tomato", "put the tomato on the plate", "take the plate"),
            ],
            "serve the dish",
        ),
    ],
)
def test_a_wrong_delivery_is_taken_away(before, text):
    state = act(BOTH, at(BOTH), *before)
    *_, (after, event) = BOTH.play(state, BOTH.macros(state)[text])
    assert event == "wrong"
    assert after == BOTH.start(BOTH.stands["D"])


def test_the_onion_spoils_the_dish():
    chop = [
        (f"pick up the {food}", f"put the {food} on the first cutting board", f"chop the {food}", f"pick up the {food}")
        for food in ("tomato", "lettuce", "onion")
    ]
    state = at(BOTH)
    for texts in chop[:2]:
        state = act(BOTH, state, *texts, f"put the {texts[0].split()[-1]} on the plate")
    *_, (_, event) = BOTH.play(
        act(BOTH, state, "take the plate"), BOTH.macros(act(BOTH, state, "take the plate"))["serve the dish"]
    )
    assert event == "delivered"
    state = act(BOTH, state, *chop[2], "put the onion on the plate", "take the plate")
    *_, (after, event) = BOTH.play(state, BOTH.macros(state)["serve the dish"])
    assert event == "wrong"
    assert after == BOTH.start(BOTH.stands["D"])


# ---- the environment -------------------------------------------------------------------------------------


def test_words():
    env = gym.make("agentgym/Overcooked-v0", task="tomato-lettuce-salad", render_mode="ansi")
    _, info = env.reset(seed=0)
    for action in ("pick up the tomato", "put the tomato on the first cutting board", "chop the tomato"):
        text, *_, info = env.step(action)
    assert text == (
        "You see nothing on the tables. The first cutting board holds the chopped tomato. "
        "The second cutting board holds nothing. You stand at the first cutting board. You hold nothing. "
        "To serve the dish of chopped tomato and chopped lettuce you should first"
    )
    assert env.render() == text
    assert set(info) == {
        *("admissible_commands", "primitive_steps", "score", "max_score", "success", "task"),
    }
    assert (info["score"], info["max_score"], info["success"], info["task"]) == (
        0.2,
        1.4,
        False,
        "tomato-lettuce-salad",
    )
    assert info["admissible_commands"] == sorted(info["admissible_commands"])
    env.step("pick up the tomato")
    env.step("put the tomato on the plate")
    text = env.step("take the plate")[0]
    assert "You hold the plate with the chopped tomato." in text
    text = env.step("put the plate back")[0]
    assert "You see the plate with the chopped tomato on the tables." in text


def test_rewards_of_a_game():
    """Each macro-action's reward, added up by hand from its primitive steps."""
    env = OvercookedEnv()
    env.reset(seed=0)
    env._state = at(TOMATO)

    def walked(count):
        return -0.001 * (1 - DISCOUNT**count) / (1 - DISCOUNT)

    expected = {
        "pick up the tomato": walked(4),
        "put the tomato on the cutting board": walked(3),
        "chop the tomato": walked(3) + 0.2 * 0.99**2,
        "take the plate": walked(6),
        "serve the empty plate": walked(4) - 0.1 * 0.99**3,
    }
    for text, reward in expected.items():
        assert env.step(text)[1] == pytest.approx(reward, abs=1e-12)
    assert env.step("pick up the tomato")[1] == pytest.approx(walked(7))
    assert env.step("put the tomato on the plate")[1] == pytest.approx(walked(6))
    assert env.step("take the plate")[1] == pytest.approx(-0.001)
    _, reward, terminated, truncated, info = env.step("serve the dish")
    assert reward == pytest.approx(walked(4) + 0.99**3)
    assert (terminated, truncated, info["success"], info["score"]) == (True, False, True, 1.2)
    assert info["primitive_steps"] == 4 + 3 + 3 + 6 + 4 + 7 + 6 + 1 + 4
    with pytest.raises(ResetNeeded):
        env.step("serve nothing")


def test_only_the_first_chopping_of_a_needed_food_is_paid():
    """Otherwise chopping and serving wrongly, again and again, would pay more than it costs."""
    env = OvercookedEnv("tomato-lettuce-salad", max_steps=10_000)
    env.reset(seed=0)
    paid = []
    for food in ("tomato", "tomato", "onion", "lettuce"):
        for text in (f"pick up the {food}", f"put the {food} on the first cutting board", f"chop the {food}"):
            reward = env.step(text)[1]
        paid.append(reward > 0)
        env.step(f"pick up the {food}")
        assert env.step(f"serve the {food}")[1] < -0.09
    assert paid == [True, False, False, True]


def test_no_way_but_delivery_pays():
    """Random play never gets more than the chopping is worth without a delivery."""
    for task, most in (("tomato-salad", 0.2), ("tomato-lettuce-salad", 0.4)):
        env = OvercookedEnv(task)
        for seed in range(30):
            rng = np.random.default_rng(seed)
            _, info = env.reset(seed=seed)
            total, over = 0.0, False
            while not over:
                commands = info["admissible_commands"]
                _, reward, terminated, truncated, info = env.step(commands[rng.integers(len(commands))])
                total, over = total + reward, terminated or truncated
            assert total < most + info["success"]
            assert info["success"] == terminated


def test_cap_counts_primitive_steps_and_cuts_a_macro_action():
    env = OvercookedEnv(max_steps=3, expert=True)
    env.reset(seed=0)
    env._state = at(TOMATO)
    text, reward, terminated, truncated, info = env.step("pick up the tomato")
    assert reward == pytest.approx(-0.001 * (1 + 0.99 + 0.99**2))
    assert (terminated, truncated, info["primitive_steps"], info["expert_action"]) == (False, True, 3, None)
    assert "You see the tomato on the tables." in text
    assert "You hold nothing." in text
    usual = OvercookedEnv()
    usual.reset(seed=0)
    assert [usual.step("wait")[3] for _ in range(200)] == [False] * 199 + [True]


def test_delivery_with_the_last_step_is_no_truncation():
    env = OvercookedEnv()
    steps = follow(env, 4)[2]["primitive_steps"]
    assert follow(OvercookedEnv(max_steps=steps), 4)[2]["success"]
    late = follow(OvercookedEnv(max_steps=steps - 1), 4)
    assert (late[2]["success"], late[2]["primitive_steps"]) == (False, steps - 1)


def test_chopping_that_is_cut_is_not_done():
    env = OvercookedEnv()
    env.reset(seed=0)
    env._state = act(TOMATO, at(TOMATO), "pick up the tomato", "put the tomato on the cutting board")
    env._steps = 198
    text, reward, _, truncated, _ = env.step("chop the tomato")
    assert truncated
    assert reward < 0
    assert "holds the tomato." in text


def test_what_cannot_be_done_costs_a_step_and_changes_nothing():
    env = OvercookedEnv(expert=True)
    text, before = env.reset(seed=1)
    odd = ("", "dance", "日本 \ud800", "x" * 100_000, "\x00", "pick up the lettuce", "serve the dish")
    for number, action in enumerate(odd, 1):
        told, reward, terminated, truncated, info = env.step(action)
        assert told == f"You cannot do that now. {text}"
        assert (reward, terminated, truncated) == (-0.001, False, False)
        assert info == before | {"primitive_steps": number}
    told = env.step(" Take THE\n plate ")[0]
    assert "You hold the plate." in told


def test_seeds_draw_the_cell():
    env = OvercookedEnv()
    cells = []
    for seed in range(300):
        env.reset(seed=seed)
        cells.append(env._state.at)
    assert set(cells) == set(TOMATO.floor)
    again = OvercookedEnv("tomato-lettuce-salad")
    for seed in range(20):
        again.reset(seed=seed)
        assert again._state.at == cells[seed]


def test_options_hold_for_one_episode():
    env = OvercookedEnv()
    usual = env.reset(seed=3)
    text, info = env.reset(seed=3, options={"task": "tomato-lettuce-salad", "expert": True})
    assert text.endswith("To serve the dish of chopped tomato and chopped lettuce you should first")
    assert len(info["admissible_commands"]) == 8
    assert info["expert_action"] in info["admissible_commands"]
    assert env.reset(seed=3) == env.reset(seed=3, options={"split": "test"}) == usual
    assert "expert_action" not in usual[1]


@pytest.mark.parametrize("task", TASKS)
def test_expert_recovers(task):
    env = OvercookedEnv(task, expert=True, max_steps=1000)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        _, info = env.reset(seed=seed)
        for _ in range(20):
            if not info["success"]:
                info = env.step(info["admissible_commands"][rng.integers(len(info["admissible_commands"]))])[-1]
        while not info["success"]:
            info = env.step(info["expert_action"])[-1]
        assert info["primitive_steps"] < 400


def test_expert_policy():
    with EnvPool("agentgym/Overcooked-v0", {}) as pool:
        sure, _ = evaluate(pool, ExpertPolicy(), RolloutConfig(retries=0), 6)
        noisy, _ = evaluate(pool, ExpertPolicy(noise=0.2), RolloutConfig(retries=0), 6)
    assert sure.success.mean == 1.0
    assert 1.1 < sure.returns.mean < 1.2
    assert noisy.failed == 0
    assert noisy.returns.mean < sure.returns.mean


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"task": "tomato salad"}, ["task", "tomato salad", "tomato-salad"]),
        ({"task": None}, ["task", "None", "tomato-lettuce-salad"]),
        ({"max_steps": 0}, ["max_steps"]),
        ({"render_mode": "human"}, ["human"]),
    ],
)
def test_bad_arguments(kwargs, words):
    with pytest.raises(ConfigError) as caught:
        OvercookedEnv(**kwargs)
    assert all(word in str(caught.value) for word in words)


def test_bad_options():
    env = OvercookedEnv()
    for options, word in (({"task": "x"}, "task"), ({"split": "x"}, "split"), ({"foo": 1}, "foo")):
        with pytest.raises(ConfigError, match=word):
            env.reset(seed=0, options=options)
    assert env.reset(seed=0)


def test_misuse():
    env = OvercookedEnv()
    with pytest.raises(ResetNeeded):
        env.step("take the plate")
    env.close()
    env.close()
