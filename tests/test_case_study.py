"""The case study of POAD: the credit lies on the word that decides."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from agentgym.trainers import poad

FILE = Path(__file__).parents[1] / "examples" / "04_poad_case_study.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("case_study", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_the_first_word_gets_credit(study, tmp_path):
    found = {m: study.learn(poad.Algo(method=m, gamma=0.95), 4000, 0) for m in ("poad", "ntpo")}
    for (state, action), part in found["poad"].items():
        assert abs(part[0]) > 0.03
        assert abs(part[1:]).max() < 0.02
        right = study.ACTIONS[state]
        assert (part[0] > 0) == (action == right)
    useless = (0, "put the pancake in the microwave")
    assert found["ntpo"][useless][0] - found["poad"][useless][0] > 0.04  # length alone makes it look better
    study.draw(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
