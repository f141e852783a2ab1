"""One tree of seeds: run -> step -> group -> member. No global generator is ever touched.

A node is named by its path, so any seed can be recomputed from the run seed alone and a resumed run
draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import numpy as np

_BRANCHES = {"env": 0, "member": 1, "eval": 2, "init": 3, "data": 4, "seat": 5}


def _seed(run_seed: int, *path: int) -> int:
    return int(np.random.SeedSequence(run_seed, spawn_key=path).generate_state(1, np.uint32)[0] >> 1)


def env_seed(run_seed: int, step: int, group: int) -> int:
    """Environment seed (31 bits) shared by the members of a group."""
    return _seed(run_seed, _BRANCHES["env"], step, group)


def member_seed(run_seed: int, step: int, group: int, member: int) -> int:
    """Sampling seed (31 bits) of one member of a group."""
    return _seed(run_seed, _BRANCHES["member"], step, group, member)


def seat_seed(game_seed: int, seat: int) -> int:
    """Sampling seed (31 bits) of one seat of a game; the number after the last seat is for chance."""
    return _seed(game_seed, _BRANCHES["seat"], seat)


def eval_seed(seed: int, episode: int) -> int:
    """Environment and sampling seed (31 bits) of a held-out evaluation episode."""
    return _seed(seed, _BRANCHES["eval"], episode)


def init_seed(run_seed: int) -> int:
    """Seed (31 bits) for fresh parameters."""
    return _seed(run_seed, _BRANCHES["init"])


def data_rng(run_seed: int, epoch: int) -> np.random.Generator:
    """Generator that shuffles a data set in one epoch."""
    return np.random.default_rng(np.random.SeedSequence(run_seed, spawn_key=(_BRANCHES["data"], epoch)))


def turn_rng(sampling_seed: int, turn: int) -> np.random.Generator:
    """Generator that samples one turn of one member, whatever else runs beside it."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(sampling_seed, spawn_key=(turn,))))
