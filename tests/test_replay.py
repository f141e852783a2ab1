"""Replay finds exactly what an environment does otherwise than the stored episode."""

import gymnasium as gym
import pytest

from agentgym import store
from agentgym.types import Status, Trajectory, Turn


class Counter(gym.Env):
    """Counts up by the action; ends at 3; counts from another number under another seed."""

    def reset(self, *, seed=None, options=None):
        self.value = (seed or 0) % 2 + (options or {}).get("offset", 0)
        return f"at {self.value}", {}

    def step(self, action):
        self.value += int(action)
        return f"at {self.value}", 0.1 * self.value, self.value >= 3, False, {}


def counted(actions, seed=0):
    """The stored episode of these actions; None is a parse error."""
    env, trajectory = Counter(), Trajectory("Counter-v0", seed, status=Status.TRUNCATED)
    observation, _ = env.reset(seed=seed)
    for action in actions:
        turn = Turn(observation, 0, 0, 0, 0, "", action)
        trajectory.turns.append(turn)
        if action is None:
            turn.parse_error, turn.reward = "no action", -1.0
            continue
        observation, turn.reward, done, _, _ = env.step(action)
        trajectory.status = Status.DONE if done else Status.TRUNCATED
    trajectory.final_observation = observation
    return trajectory


def test_replay_reproduces_an_episode():
    assert store.replay(counted(["1", None, "1", "1"]), Counter()) == []
    assert store.replay(counted(["1"], seed=5), Counter()) == []
    complaint = counted(["1", None, "1"])
    complaint.turns[2].observation = "Please answer with one action."
    assert store.replay(complaint, Counter()) == []


def test_replay_lists_what_differs():
    trajectory = counted(["1", "1", "1"])
    trajectory.turns[1].observation = "at 7"
    trajectory.turns[2].reward = 0.25
    found = [(m.turn, m.what, m.stored, m.replayed) for m in store.replay(trajectory, Counter())]
    assert found == [(1, "observation", "at 7", "at 1"), (2, "reward", 0.25, pytest.approx(0.3))]
    shifted = store.replay(counted(["1", "1", "1"]), Counter(), options={"offset": 1})
    assert [(m.turn, m.what) for m in shifted] == [
        *[(0, "observation"), (0, "reward"), (1, "observation"), (1, "reward"), (2, "end")]
    ]


def test_replay_shows_observations_as_the_policy_saw_them():
    trajectory = counted(["1", "1"])
    for turn in trajectory.turns:
        turn.observation += " of []"
    assert len(store.replay(trajectory, Counter())) == 2
    assert store.replay(trajectory, Counter(), show=lambda text, commands: f"{text} of {commands}") == []


def test_replay_sees_a_changed_end():
    trajectory = counted(["1", "1"])
    trajectory.status = Status.DONE
    assert [(m.turn, m.what) for m in store.replay(trajectory, Counter())] == [(2, "end")]
    trajectory.final_observation = "gone"
    trajectory.status = Status.ENV_ERROR
    assert store.replay(trajectory, Counter()) == []
