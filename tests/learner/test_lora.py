"""LoRA: adapters start as nothing, are all that changes, and are what peft loads."""

from __future__ import annotations

import asyncio
import copy
import json

import pytest
import torch
from agentgym.trainers import grpo, sft
from helpers_policies import tiny_model
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from agentgym import store
from agentgym.config import overlay
from agentgym.errors import ConfigError
from agentgym.learner.attention import Packed, hidden_states, logits_at
from agentgym.learner.checkpoint import save_model
from agentgym.learner.learner import Learner, OptimConfig
from agentgym.learner.lora import LoraConfig
from agentgym.learner.model import frozen_copy, load_model
from agentgym.learner.setup import ModelConfig, open_model
from agentgym.policies.hf import HFPolicy

COMMON = {
    "env": {"id": "test/Echo-v0"},
    "rollout": {"max_turns": 3, "max_new_tokens": 6, "context_limit": 300},
    "eval": {"final_episodes": 4},
}
LORA = {"rank": 4, "alpha": 8.0}
SFT = {"demonstrations": 16, "epochs": 2, "batch_size": 8, "optim": {"lr": 1e-2}}
GRPO = {
    "steps": 3,
    "groups": 3,
    "group_size": 4,
    "save_every": 1,
    "optim": {"lr": 1e-2},
    "algo": {"kl_coef": 0.01, "entropy_coef": 0.1},
}
IDS = torch.arange(20, 60)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(folder, *tiny_model(1))
    return folder


def settings(trainer, model, values):
    return trainer.make_config(overlay({**COMMON, "model": {"path": str(model), "lora": LORA}}, values))


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    """The adapter of an SFT run."""
    out = tmp_path_factory.mktemp("tuned") / "sft"
    sft.main(settings(sft, base, SFT), out)
    return out / "final"


@pytest.fixture(scope="module")
def trained(tuned, tmp_path_factory):
    """The run folder of GRPO that went on training that adapter."""
    out = tmp_path_factory.mktemp("trained") / "grpo"
    grpo.main(settings(grpo, tuned, GRPO), out)
    return out


def logits(model):
    with torch.no_grad():
        return logits_at(model, hidden_states(model, IDS, torch.arange(len(IDS)), Packed([0, len(IDS)], [-1])))


def open_lora(path, seed=0, **values):
    return open_model(ModelConfig(path=str(path), lora=LoraConfig(**{**LORA, **values})), seed, None)[0]


def test_fresh_adapters_change_nothing_and_are_all_that_is_trained(base):
    plain = load_model(str(base))[0]
    model = open_lora(base)
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=0)
    assert all(("lora_" in name) == p.requires_grad for name, p in model.named_parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    same, other = open_lora(base), open_lora(base, seed=1)
    a, b, c = (dict(m.named_parameters()) for m in (model, same, other))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert any(not torch.equal(a[n], c[n]) for n in a)
    narrow = open_lora(base, targets="q_proj, v_proj")
    trained = {n.split(".lora_")[0].rpartition(".")[2] for n, p in narrow.named_parameters() if p.requires_grad}
    assert trained == {"q_proj", "v_proj"}


def test_adapters_stay_in_full_precision_on_a_half_precision_model(base):
    model = open_model(ModelConfig(path=str(base), dtype="bfloat16", lora=LoraConfig(**LORA)), 0, None)[0]
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_peft_loads_what_was_saved_and_computes_the_same(base, tuned):
    assert not (tuned / "model.safetensors").exists()
    theirs = AutoPeftModelForCausalLM.from_pretrained(str(tuned)).eval()
    merged = load_model(str(tuned))[0]
    model = open_lora(tuned)
    with torch.no_grad():
        expected = theirs(input_ids=IDS[None]).logits[0]
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    assert float((logits(load_model(str(base))[0]) - expected).abs().max()) > 0.01
    kept = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for name, value in model.get_base_model().state_dict().items():
        if "lora_" not in name:
            assert torch.equal(value, kept[name.replace(".base_layer", "")])


def test_training_goes_on_with_the_adapter_it_was_given(tuned, trained):
    before, after = (load_file(p / "adapter_model.safetensors") for p in (tuned, trained / "final"))
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    first = json.loads((trained / "metrics.jsonl").read_text().splitlines()[1])
    assert first["policy/kl_ref"] < 1e-6  # the reference is the adapter at the start, not the model below it


def test_what_was_sampled_is_what_the_saved_adapter_says(trained):
    (episode, *_) = store.read(trained / "trajectories" / "eval_after.jsonl")
    segment, start = episode.segments[0], episode.turns[0].start
    model, _, renderer = open_model(ModelConfig(path=str(trained / "final"), lora=LoraConfig(**LORA)), 0, None)
    got = asyncio.run(HFPolicy(model, renderer).score(segment.ids, start))
    sampled = [(a, b) for a, b, m in zip(got, segment.logps[start:], segment.mask[start:], strict=True) if m]
    torch.testing.assert_close(*(torch.tensor(x) for x in zip(*sampled, strict=True)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_with_adapters_goes_on_bit_by_bit(tuned, trained, tmp_path, steps):
    grpo.main(settings(grpo, tuned, {**GRPO, "steps": steps}), tmp_path / "grpo")
    grpo.main(settings(grpo, tuned, GRPO), tmp_path / "grpo", resume=True)
    a, b = (load_file(p / "final" / "adapter_model.safetensors") for p in (trained, tmp_path / "grpo"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = (torch.load(p / "checkpoints/step_00003/trainer_state.pt") for p in (trained, tmp_path / "grpo"))
    assert all(
        torch.equal(x["exp_avg"], b["optimizer"]["state"][k]["exp_avg"]) for k, x in a["optimizer"]["state"].items()
    )


def test_a_frozen_copy_costs_only_the_adapters(tuned):
    model = open_lora(tuned)
    copied = frozen_copy(model)
    names = dict(model.named_parameters())
    assert all((p is names[n]) == ("lora_" not in n) for n, p in copied.named_parameters())
    expected = logits(model)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1)
    torch.testing.assert_close(logits(copied), expected, rtol=0, atol=0)
    assert float((logits(model) - expected).abs().max()) > 0.01


def damaged(folder, tmp_path, change):
    copied = tmp_path / "adapter"
    copied.mkdir()
    for file in folder.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    change(copied)
    return copied


def drop_one(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[1:]), folder / "adapter_model.safetensors")


def truncate(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def forget_base(folder):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": None}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_one, "belongs to another model, or to other layers"),
        (truncate, "cannot be loaded"),
        (forget_base, "does not say which model it belongs to"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "cannot be loaded"),
    ],
)
def test_a_damaged_adapter_is_one_clear_error(tuned, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message) as found:
        open_lora(damaged(tuned, tmp_path, change))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": -1}, "rank is -1"),
        ({"alpha": 0}, "alpha is 0"),
        ({"targets": " , "}, "targets is empty"),
        ({"targets": "query"}, "linear layers are down_proj, gate_proj"),
        ({"rank": 8}, "has rank 4: use 4"),
    ],
)
def test_wrong_settings_are_named(base, tuned, values, message):
    with pytest.raises(ConfigError, match=message):
        open_lora(tuned if "rank" in values else base, **values)


def test_adapters_need_a_model_below_them():
    with pytest.raises(ConfigError, match=r"model\.lora\.rank: adapters need a trained model"):
        ModelConfig(lora=LoraConfig(**LORA))


def test_weights_that_are_missing_are_an_error_not_noise(base, tmp_path):
    def drop(folder):
        weights = load_file(folder / "model.safetensors")
        weights.pop("model.layers.1.mlp.up_proj.weight")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ConfigError, match=r"1 weights are missing \(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        load_model(str(damaged(base, tmp_path, drop)))


def test_weights_of_another_shape_are_an_error(base, tmp_path):
    def widen(folder):
        weights = load_file(folder / "model.safetensors")
        name = "model.layers.0.mlp.up_proj.weight"
        save_file({**weights, name: torch.zeros(7, 32)}, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ConfigError, match=r"cannot load|weights are missing"):
        load_model(str(damaged(base, tmp_path, widen)))


def test_a_switched_attention_is_noticed(base):
    model = load_model(str(base))[0]
    other = copy.deepcopy(model)
    other.set_attn_implementation("sdpa")
    logits(model)
    with pytest.raises(ValueError, match="attention was switched"):
        logits(other)


def test_weights_of_half_precision_are_not_trained_but_adapters_on_them_are(base):
    config = ModelConfig(path=str(base), dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"model\.dtype is of half precision"):
        Learner(open_model(config, 0, None)[0], OptimConfig())
    config.lora = LoraConfig(**LORA)
    Learner(open_model(config, 0, None)[0], OptimConfig())


def test_autocast_computes_nearly_the_same_update_in_bfloat16(base, tuned):
    data = store.read(tuned.parent / "trajectories" / "demonstrations.jsonl")
    cfg = settings(sft, base, {})
    found, kinds = [], set()
    for autocast in (False, True):
        model = load_model(str(base))[0]
        layer = model.model.layers[1].mlp.up_proj
        layer.register_forward_hook(lambda m, i, out: kinds.add(out.dtype))
        learner = Learner(model, OptimConfig(autocast=autocast))
        found.append(learner.step(sft.batches(data, cfg), sft.loss_fn))
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert kinds == {torch.float32, torch.bfloat16}
    exact, fast = found
    assert exact["sft/nll"] != fast["sft/nll"]
    assert fast["sft/nll"] == pytest.approx(exact["sft/nll"], rel=0.01)
    assert fast["optim/grad_norm"] == pytest.approx(exact["optim/grad_norm"], rel=0.05)
