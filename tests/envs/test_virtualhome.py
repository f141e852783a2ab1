import itertools
import re

import gymnasium as gym
import numpy as np
import pytest
from agentgym.envs.planning import shortest_plan
from agentgym.envs.virtualhome import VirtualHomeEntertainmentEnv, VirtualHomeFoodEnv
from agentgym.envs.virtualhome_tasks import ROOMS, VARIANTS, Entertainment, Food
from gymnasium.error import ResetNeeded

import agentgym  # noqa: F401
from agentgym.credit import discounted_returns
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError
from agentgym.evaluate import evaluate
from agentgym.policies.scripted import ExpertPolicy
from agentgym.rollout import RolloutConfig

FOOD, ENTERTAINMENT = Food("pancake"), Entertainment()
TASKS = [FOOD, ENTERTAINMENT]
CLASSES = [VirtualHomeFoodEnv, VirtualHomeEntertainmentEnv]


def reachable(task):
    """Every state that can be reached from any room, breadth first; an episode ends where it is solved."""
    found = dict.fromkeys(task.start(room) for room in ROOMS)
    queue = list(found)
    for state in queue:
        if not task.solved(state):
            new = [after for after in task.moves(state).values() if after not in found]
            queue += dict.fromkeys(new)
            found |= dict.fromkeys(new)
    return list(found)


def distances(task):
    """Fewest steps to success of every reachable state, by going backwards from the solved ones."""
    states = reachable(task)
    found = {state: 0 for state in states if task.solved(state)}
    for steps in itertools.count(1):
        near = [
            state
            for state in states
            if state not in found and any(found.get(after) == steps - 1 for after in task.moves(state).values())
        ]
        if not near:
            return found
        found |= dict.fromkeys(near, steps)


def follow(env, seed, actions=None, **options):
    """Play the expert, or these actions: the steps, the rewards, the last info."""
    _, info = env.reset(seed=seed, options={"expert": True, **options})
    said, rewards, over = [], [], False
    while not over:
        said.append(actions[len(said)] if actions else info["expert_action"])
        _, reward, terminated, truncated, info = env.step(said[-1])
        rewards.append(reward)
        over = terminated or truncated
    return said, rewards, info


# ---- the automata ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "actions", "bits", "states"), [(FOOD, 10, 11, 28), (ENTERTAINMENT, 17, 21, 156)])
def test_size(task, actions, bits, states):
    found = reachable(task)
    assert len(task.actions) == len(set(task.actions)) == actions
    assert {action for state in found if not task.solved(state) for action in task.moves(state)} == set(task.actions)
    assert {len(task.bits(state)) for state in found} == {bits}
    assert len(found) == states


@pytest.mark.parametrize("task", TASKS)
def test_bits_and_text_tell_the_states_apart(task):
    """The text is an observation of the whole state: none is told like another."""
    states = reachable(task)
    assert len({tuple(task.bits(state).items()) for state in states}) == len(states)
    assert len({task.tell(state) for state in states}) == len(states)


@pytest.mark.parametrize("task", TASKS)
def test_three_to_seven_actions_in_every_state(task):
    counts = {len(task.moves(state)) for state in reachable(task) if not task.solved(state)}
    assert (min(counts), max(counts)) == (3, 5 if task is FOOD else 7)


@pytest.mark.parametrize("task", TASKS)
def test_every_admissible_action_changes_the_state(task):
    for state in reachable(task):
        assert state not in task.moves(state).values()
        assert len(set(task.moves(state).values())) == len(task.moves(state))


@pytest.mark.parametrize(("task", "farthest"), [(FOOD, 7), (ENTERTAINMENT, 11)])
def test_no_dead_ends(task, farthest):
    found = distances(task)
    assert set(found) == set(reachable(task))
    assert max(found.values()) == farthest


def test_shortest_solutions():
    food, entertainment = distances(FOOD), distances(ENTERTAINMENT)
    assert {room: food[FOOD.start(room)] for room in ROOMS} == dict(zip(ROOMS, (6, 7, 7, 7), strict=True))
    assert {room: entertainment[ENTERTAINMENT.start(room)] for room in ROOMS} == dict(
        zip(ROOMS, (11, 11, 11, 10), strict=True)
    )


@pytest.mark.parametrize("task", TASKS)
def test_planning_finds_the_shortest(task):
    def moves(state):
        return {action: (after, 1) for action, after in task.moves(state).items()}

    for state, steps in distances(task).items():
        plan = shortest_plan(state, moves, task.solved)
        assert len(plan) == steps
        for action in plan:
            state = task.moves(state)[action]
        assert task.solved(state)
    assert shortest_plan(task.start("bedroom"), moves, lambda state: False) is None


def test_planning_weighs_costs():
    roads = {"a": {"far": ("c", 5), "on": ("b", 1)}, "b": {"on": ("c", 2)}, "c": {}}
    assert shortest_plan("a", roads.__getitem__, "c".__eq__) == ["on", "on"]
    roads["a"]["far"] = ("c", 3)
    assert shortest_plan("a", roads.__getitem__, "c".__eq__) == ["far"]
    assert shortest_plan("c", roads.__getitem__, "c".__eq__) == []


def test_the_bits_of_food():
    """A solution, bit by bit: the four rooms, sees/near/holds the pancake, sees/near/open microwave, pancake inside."""
    state, seen = FOOD.start("bedroom"), []
    for action in (
        *("walk to the kitchen", "walk to the pancake", "grab the pancake", "walk to the microwave"),
        *("open the microwave", "put the pancake in the microwave", "close the microwave"),
    ):
        state = FOOD.moves(state)[action]
        seen.append("".join(str(int(bit)) for bit in FOOD.bits(state).values()))
    assert seen == [
        "10001001000",
        "10001101000",
        "10000011000",
        "10000011100",
        "10000011110",
        "10001101111",
        "10000001101",
    ]
    assert FOOD.solved(state)


@pytest.mark.parametrize("task", TASKS)
def test_bits_agree_with_each_other(task):
    for state in reachable(task):
        bits = task.bits(state)
        assert sum(bits[f"in the {room}"] for room in ROOMS) == 1
        things = [name.removeprefix("is near the ") for name in bits if name.startswith("is near the ")]
        for thing in things:
            assert bits[f"sees the {thing}"] or not bits[f"is near the {thing}"]
            held = bits.get(f"holds the {thing}", False)
            assert not (held and bits[f"sees the {thing}"])
            assert state.room not in ("bathroom", "bedroom") or not bits[f"sees the {thing}"]


@pytest.mark.parametrize("task", TASKS)
def test_the_text_says_the_bits(task):
    for state in reachable(task):
        text, bits = task.tell(state), task.bits(state)
        assert text.startswith("There are four rooms: ")
        assert text.endswith(f"Your goal is to {task.goal}, and your next step is to")
        assert "\n" not in text
        assert re.search(r"You are in the ([\w ]+)\.", text)[1] == state.room
        for verb, bit in (("see", "sees"), ("hold", "holds")):
            words = re.search(rf"You {verb} ([\w ,]+)\.", text)[1]
            named = {name.removeprefix(f"{bit} the ") for name in bits if name.startswith(f"{bit} ") and bits[name]}
            assert {thing for thing in re.split(r", | and ", words) if thing.startswith("the ")} == {
                f"the {thing}" for thing in named
            }
            assert words == "nothing" or named


def test_entertainment_needs_a_free_hand_for_the_tv():
    state = ENTERTAINMENT.start("kitchen")
    for action in (
        "walk to the chips",
        "grab the chips",
        "walk to the milk",
        "grab the milk",
        "walk to the living room",
    ):
        state = ENTERTAINMENT.moves(state)[action]
    at_tv = ENTERTAINMENT.moves(state)["walk to the TV"]
    assert "turn on the TV" not in ENTERTAINMENT.moves(at_tv)
    assert "You hold the chips and the milk, and no hand is free." in ENTERTAINMENT.tell(at_tv)
    for action in (
        *("walk to the coffee table", "put the milk on the coffee table", "walk to the TV", "turn on the TV"),
        *("walk to the sofa", "sit on the sofa"),
    ):
        assert not ENTERTAINMENT.solved(state)
        state = ENTERTAINMENT.moves(state)[action]
    assert ENTERTAINMENT.solved(state)
    assert (state.chips, state.milk) == ("hand", "table")


def test_sitting_down_too_early_is_no_success():
    state = ENTERTAINMENT.start("living room")
    for action in ("walk to the TV", "turn on the TV", "walk to the sofa", "sit on the sofa"):
        state = ENTERTAINMENT.moves(state)[action]
    assert not ENTERTAINMENT.solved(state)
    assert ENTERTAINMENT.moves(state)["stand up from the sofa"] == state._replace(sits=False)
    assert ENTERTAINMENT.moves(state)["walk to the kitchen"] == state._replace(sits=False, near="", room="kitchen")


def test_variants_change_the_nouns_only():
    """Every state and action of a variant is that of the pancake with other words."""
    for variant, (thing, appliance) in VARIANTS.items():
        task = Food(variant)

        def renamed(text, thing=thing, appliance=appliance):
            return text.replace("pancake", thing).replace("microwave", appliance)

        assert task.actions == tuple(renamed(action) for action in FOOD.actions)
        assert reachable(task) == reachable(FOOD)
        for state in reachable(FOOD):
            assert task.tell(state) == renamed(FOOD.tell(state))
            assert task.moves(state) == {renamed(a): after for a, after in FOOD.moves(state).items()}
            assert list(task.bits(state)) == [renamed(bit) for bit in FOOD.bits(state)]
    assert {a for _, a in VARIANTS.values()} == {"microwave", "dishwasher", "washing machine"}


@pytest.mark.parametrize("task", [*(Food(variant) for variant in VARIANTS), ENTERTAINMENT])
def test_actions_fit_the_scoring_of_word_lists(task):
    """Without commas, as actions are joined with them, and short."""
    assert not any("," in action for action in task.actions)
    assert max(len(action.split()) for action in task.actions) <= 8


# ---- the environments ------------------------------------------------------------------------------------


def test_words():
    env = gym.make("agentgym/VirtualHome-Food-v0", start="bedroom", render_mode="ansi")
    text, info = env.reset(seed=0)
    rooms = "There are four rooms: the kitchen, the bathroom, the bedroom and the living room. "
    goal = "Your goal is to put the pancake in the microwave and close the microwave, and your next step is to"
    assert text == (
        f"{rooms}You are in the bedroom. You see nothing. You hold nothing. The microwave is closed and holds nothing. "
        f"{goal}"
    )
    assert info == {
        "admissible_commands": ["walk to the bathroom", "walk to the kitchen", "walk to the living room"],
        "score": 0.0,
        "max_score": 1.0,
        "success": False,
        "task": "put the pancake in the microwave and close the microwave",
    }
    for action in ("walk to the kitchen", "walk to the microwave", "open the microwave", "walk to the pancake"):
        text = env.step(action)[0]
    assert text == (
        f"{rooms}You are in the kitchen. You see the pancake and the microwave. You are near the pancake. "
        f"You hold nothing. The microwave is open and holds nothing. {goal}"
    )
    assert env.render() == text


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_discounted_return_of_the_expert(room, variant):
    """0.95 a step: 0.7738 for the shortest solution in the kitchen, 0.7351 from elsewhere."""
    said, rewards, info = follow(VirtualHomeFoodEnv(variant, room), 0)
    assert rewards == [0.0] * (len(said) - 1) + [1.0]
    assert info["success"]
    assert info["expert_action"] is None
    value = discounted_returns(rewards, 0.95)[0]
    assert round(value, 4) == (0.7738 if room == "kitchen" else 0.7351)
    assert value == pytest.approx(0.95 ** (len(said) - 1))


def test_discounted_return_of_longer_solutions():
    best = follow(VirtualHomeFoodEnv(start="kitchen"), 0)[0]
    for detour, expected in ((["walk to the bedroom", "walk to the kitchen"], 0.6983), (["dance"], 0.7351)):
        rewards = follow(VirtualHomeFoodEnv(start="kitchen"), 0, [*detour, *best])[1]
        assert round(discounted_returns(rewards, 0.95)[0], 4) == expected
    said, rewards, _ = follow(VirtualHomeEntertainmentEnv("living room"), 0)
    assert len(said) == 10
    assert round(discounted_returns(rewards, 0.95)[0], 4) == 0.6302
    assert round(discounted_returns(follow(VirtualHomeEntertainmentEnv("bedroom"), 0)[1], 0.95)[0], 4) == 0.5987


@pytest.mark.parametrize("env_class", CLASSES)
def test_expert_recovers(env_class):
    """After 30 random steps it needs no more than from the farthest state."""
    env = env_class(expert=True)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        _, info = env.reset(seed=seed)
        for _ in range(30):
            if info["success"]:
                break
            info = env.step(info["admissible_commands"][rng.integers(len(info["admissible_commands"]))])[-1]
        steps = 0
        while not info["success"]:
            info = env.step(info["expert_action"])[-1]
            steps += 1
        assert steps <= 11


def test_seeds_draw_what_is_left_open():
    env = VirtualHomeFoodEnv()
    starts = [env.reset(seed=seed)[0] for seed in range(200)]
    assert {text: round(starts.count(text) / 200, 1) for text in starts}.keys() == {
        FOOD.tell(FOOD.start(r)) for r in ROOMS
    }
    assert min(starts.count(text) for text in set(starts)) > 30
    assert [env.reset(seed=seed)[0] for seed in range(200)] == starts
    goals = [VirtualHomeFoodEnv(variant=None, start="kitchen").reset(seed=seed)[1]["task"] for seed in range(100)]
    assert set(goals) == {Food(variant).goal for variant in VARIANTS}
    # what is fixed does not change what else is drawn
    free, fixed = VirtualHomeFoodEnv(variant=None), VirtualHomeFoodEnv(variant="pizza")
    room = re.compile(r"You are in the [\w ]+\.")
    for seed in range(20):
        assert room.search(free.reset(seed=seed)[0])[0] == room.search(fixed.reset(seed=seed)[0])[0]


def test_reset_without_seed_draws_from_np_random():
    texts = []
    for _ in range(2):
        env = VirtualHomeFoodEnv(variant=None)
        env.reset(seed=5)
        texts.append([env.reset()[0] for _ in range(8)])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 3


def test_options_hold_for_one_episode():
    env = VirtualHomeFoodEnv()
    usual = env.reset(seed=3)
    other = env.reset(seed=3, options={"variant": "clothes", "start": "bathroom", "expert": True})
    assert other[1]["task"] == "put the clothes in the washing machine and close the washing machine"
    assert "You are in the bathroom." in other[0]
    assert other[1]["expert_action"] == "walk to the kitchen"
    assert env.reset(seed=3) == env.reset(seed=3, options={"split": "test"}) == usual
    assert "expert_action" not in usual[1]


@pytest.mark.parametrize("env_class", CLASSES)
def test_what_cannot_be_done_costs_a_step_and_changes_nothing(env_class):
    env = env_class(start="bedroom", max_steps=8, expert=True)
    text, before = env.reset(seed=0)
    odd = ("", "dance", "日本 \ud800", "x" * 100_000, "\x00", "grab the milk", "walk to the bedroom")
    for action in odd:
        told, reward, terminated, truncated, info = env.step(action)
        assert told == f"You cannot do that now. {text}"
        assert (reward, terminated, truncated, info) == (0.0, False, False, before)
    told, reward, terminated, truncated, info = env.step(" Walk TO\n the Kitchen ")
    assert "You are in the kitchen." in told
    assert (reward, terminated, truncated, info["success"], info["expert_action"]) == (0.0, False, True, False, None)
    with pytest.raises(ResetNeeded):
        env.step("walk to the bedroom")


def test_capital_letters_do_not_matter():
    env = VirtualHomeEntertainmentEnv("living room")
    env.reset(seed=0)
    assert "You are near the TV." in env.step("walk to the tv")[0]
    assert "The TV is on." in env.step("Turn on the TV")[0]


@pytest.mark.parametrize("env_class", CLASSES)
def test_cap(env_class):
    env = env_class()
    env.reset(seed=0)
    assert [env.step("wait")[3] for _ in range(50)] == [False] * 49 + [True]
    env.close()
    env.close()
    with pytest.raises(ResetNeeded):
        env_class().step("walk to the kitchen")


def test_success_on_the_last_step_is_no_truncation():
    env = VirtualHomeFoodEnv(start="kitchen", max_steps=6)
    said, _, info = follow(env, 0)
    assert (len(said), info["success"]) == (6, True)


def test_expert_policy():
    with EnvPool("agentgym/VirtualHome-Entertainment-v0", {}) as pool:
        sure, _ = evaluate(pool, ExpertPolicy(), RolloutConfig(retries=0), 6)
        noisy, _ = evaluate(pool, ExpertPolicy(noise=0.3), RolloutConfig(retries=0), 6)
    assert sure.success.mean == sure.returns.mean == 1.0
    assert noisy.failed == 0
    assert noisy.turns.mean > sure.turns.mean


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"variant": "pancak"}, ["variant", "pancak", "pancake"]),
        ({"variant": ["pancake"]}, ["variant", "['pancake']"]),
        ({"start": "cellar"}, ["start", "cellar", *ROOMS]),
        ({"max_steps": 0}, ["max_steps"]),
        ({"render_mode": "human"}, ["human"]),
    ],
)
def test_bad_arguments(kwargs, words):
    with pytest.raises(ConfigError) as caught:
        VirtualHomeFoodEnv(**kwargs)
    assert all(word in str(caught.value) for word in words)


def test_bad_options():
    env = VirtualHomeFoodEnv()
    bad = ({"variant": "x"}, {"start": "x"}, {"split": "x"}, {"foo": 1})
    for options, word in zip(bad, ("variant", "start", "split", "foo"), strict=True):
        with pytest.raises(ConfigError, match=word):
            env.reset(seed=0, options=options)
    with pytest.raises(ConfigError, match="variant"):
        VirtualHomeEntertainmentEnv().reset(seed=0, options={"variant": "pizza"})
    assert env.reset(seed=0)
