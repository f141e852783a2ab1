"""The benchmark of the information-gain probe: its arithmetic, and that it runs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "igpo_probe.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("igpo_probe", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("turns", "ratio"), [(2, 1.25), (5, 2.2), (10, 3.85), (20, 7.175)])
def test_attention_of_a_pass_a_turn(benchmark, turns, ratio):
    """Spec A14-11: contexts that grow by the same number of tokens each turn."""
    assert benchmark.attention_ratio([100 * (t + 1) for t in range(turns)]) == pytest.approx(ratio)


def test_a_small_run_prints_its_ratios(benchmark, capsys, monkeypatch):
    size = "--groups 1 --size 2 --turns 2 --reply 4 --hidden 16 --layers 1 --rounds 1"
    monkeypatch.setattr(sys, "argv", ["igpo_probe.py", *size.split()])
    benchmark.main()
    said = capsys.readouterr().out
    assert "4 turns a step" in said
    assert said.count("ratio:") == 2
