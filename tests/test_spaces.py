"""The text space under gymnasium's own rules."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from hypothesis import given
from hypothesis import strategies as st

from agentgym.spaces import UnicodeText

LENGTHS = st.integers(0, 40) | st.just(65536)


@given(LENGTHS, st.integers(0, 2**31 - 1))
def test_samples_are_inside_and_follow_the_seed(length, seed):
    one, two = UnicodeText(length, seed=seed), UnicodeText(length)
    two.seed(seed)
    drawn = [one.sample() for _ in range(5)]
    assert drawn == [two.sample() for _ in range(5)]
    assert all(s in one for s in drawn)


@given(st.text(max_size=20), LENGTHS)
def test_contains(text, length):
    assert (text in UnicodeText(length)) == (len(text) <= length)


def test_what_is_no_text_is_outside():
    for x in (None, 1, b"text", ["text"], np.array("text")):
        assert x not in UnicodeText()
    assert "世界 \u2028 🍎" in UnicodeText()
    assert np.str_("text") in UnicodeText()
    with pytest.raises(ValueError, match="max_length is -1"):
        UnicodeText(-1)


def test_equality_copies_and_the_words_for_it():
    space = UnicodeText(7, seed=1)
    assert space == UnicodeText(7)
    assert space != UnicodeText(8)
    assert space != gym.spaces.Text(7)
    assert repr(space) == "UnicodeText(max_length=7)"
    for twin in (copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert twin == space
        assert twin.sample() == copy.deepcopy(space).sample()
    assert space.from_jsonable(space.to_jsonable(["a", "é"])) == ["a", "é"]
    assert not space.is_np_flattenable


def test_dict_and_tuple_spaces_hold_it():
    pair = gym.spaces.Tuple([UnicodeText(3), gym.spaces.Discrete(2)])
    space = gym.spaces.Dict({"text": UnicodeText(9), "more": pair})
    space.seed(0)
    assert space.sample() in space


def test_vector_environments_batch_it():
    batch = batch_space(UnicodeText(9, seed=0), 3)
    batch.seed(0)
    assert batch.sample() in batch
    out = create_empty_array(UnicodeText(9), 2)
    assert list(iterate(batch_space(UnicodeText(9), 2), concatenate(UnicodeText(9), ["a", "b"], out))) == ["a", "b"]


class Echo(gym.Env):
    observation_space = UnicodeText(100)
    action_space = UnicodeText(100)
    metadata = {"render_modes": []}  # noqa: RUF012
    render_mode = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return f"say something: {self.np_random.integers(9)}", {}

    def step(self, action):
        return action, 0.0, False, False, {}


def test_gymnasium_checks_pass():
    check_env(Echo(), skip_render_check=True)
    vector = gym.vector.SyncVectorEnv([Echo, Echo])
    observations, _ = vector.reset(seed=3)
    assert len(observations) == 2
    observations, *_ = vector.step(("hé", "世"))
    assert tuple(observations) == ("hé", "世")
