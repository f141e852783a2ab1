"""What a run would need, said without running it; the recipes for GPUs among them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from agentgym.trainers import grpo, lspo

from agentgym import cli
from agentgym.dry_run import dry_run, memory, shapes
from agentgym.learner.learner import OptimConfig
from agentgym.learner.logprobs import token_logprobs
from agentgym.learner.lora import LoraConfig, add_adapter
from agentgym.learner.model import prepare
from agentgym.learner.pack import TrainRow, pack
from agentgym.learner.setup import ModelConfig
from agentgym.learner.tiny import build_model

RECIPES = sorted((Path(__file__).parents[1] / "examples" / "gpu").glob("*.yaml"))
MODELS = Path(__file__).parent / "data" / "model_configs"
PUBLISHED = {
    "Llama-2-7b-chat-hf": 6_738_415_616,
    "Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen3-30B-A3B": 30_532_122_624,
}
"""Parameters as the published safetensors indices count them."""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes(recipe, capsys):
    name = recipe.read_text().partition("path: ")[2].split()[0].rpartition("/")[2]
    arguments = ["train", recipe.stem, "--config", str(recipe), "--dry-run", "--set", f"model.path={MODELS / name}"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert f"{PUBLISHED[name] / 1e9:.3g} B parameters" in said
    assert "in all" in said


def test_there_is_a_recipe_for_each_algorithm_of_a_paper():
    assert {path.stem for path in RECIPES} == {"poad", "epo", "igpo", "lspo", "iterresearch", "craft_gui"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_counted_right(name):
    assert shapes(ModelConfig(path=str(MODELS / name))).parameters == PUBLISHED[name]


@pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj"])
def test_adapters_are_counted_right(models, targets, tmp_path):
    model = models(vocab_size=64)
    model.config.save_pretrained(tmp_path)
    found = shapes(ModelConfig(path=str(tmp_path), lora=LoraConfig(rank=4, targets=targets)))
    adapted = add_adapter(model, LoraConfig(rank=4, targets=targets), 0)
    assert found.trained == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert found.parameters == sum(p.numel() for p in models(vocab_size=64).parameters())


def test_a_tiny_model(tokenizers):
    found = shapes(ModelConfig(vocab_size=300, hidden=64, layers=3, heads=2))
    model = build_model(tokenizers(), 0, 64, 3, 2)
    without_words = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    assert found.parameters == without_words + 300 * 64
    assert (found.layers, found.hidden, found.heads, found.head_dim) == (3, 64, 2, 32)


@pytest.mark.parametrize("tokens", [256, 1024])
def test_activations_are_about_what_is_kept_for_the_gradient(tokenizers, tokens):
    tokenizer = tokenizers()
    model = prepare(build_model(tokenizer, 0, 128, 4, 4).eval())
    ids = torch.randint(0, len(tokenizer), (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    row = TrainRow(ids, [0] * (tokens - 8) + [1] * 8, [0.0] * tokens, [0.0] * tokens, 0)
    (batch,) = pack([row], 10**6)
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = token_logprobs(model, batch)
        measured = sum(kept.values())
        out.logp.sum().backward()
    cfg = grpo.Config(optim=OptimConfig(token_budget=tokens))
    cfg.rollout.context_limit = tokens
    cfg.model = ModelConfig(vocab_size=len(tokenizer), hidden=128, layers=4, heads=4)
    estimated = memory(cfg, shapes(cfg.model))["activations"]
    assert 0.6 < estimated / measured < 1.7


def test_gradient_checkpointing_keeps_one_layer_and_the_inputs_of_all():
    cfg = grpo.Config(optim=OptimConfig(token_budget=1000, gradient_checkpointing=True))
    cfg.model = ModelConfig(vocab_size=300, hidden=128, layers=6, heads=4)
    cfg.rollout.context_limit = 1000
    found = shapes(cfg.model)
    assert memory(cfg, found)["activations"] == 1000 * 4 * (8 * 128 + 4 * found.inner + 6 * 128)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rollout": {"context_limit": 100_000}}, "context_limit is 100000, but the model has 32768 positions"),
        ({"model": {"dtype": "bfloat16"}}, "small updates round to nothing"),
        ({"model": {"path": "/nowhere"}}, "cannot read the config of model.path='/nowhere'"),
        ({"model": {"lora": {"rank": 4, "targets": "knee_proj"}}}, "knee_proj.*down_proj"),
        ({"env": {"id": "agentgym/Nothing-v0"}}, "Nothing-v0"),
        ({"model": {"path": "tiny", "family": "smolvlm"}}, "smolvlm"),
    ],
)
def test_what_cannot_run_is_refused(values, message, capsys):
    settings = {"model": {"path": str(MODELS / "Qwen2.5-7B-Instruct")}, "env": {"id": "agentgym/VirtualHome-Food-v0"}}
    settings = {k: {**settings.get(k, {}), **values.get(k, {})} for k in {*settings, *values}}
    with pytest.raises(Exception, match=message):
        dry_run(grpo.make_config(settings))


def test_what_vllm_needs_is_said_apart():
    settings = {"model": {"path": str(MODELS / "Qwen2.5-7B-Instruct"), "threads": 0}, "decode": {"backend": "vllm"}}
    settings["env"] = {"id": "agentgym/VirtualHome-Food-v0"}
    said = dry_run(grpo.make_config(settings))
    assert "keys and values of 64 rows" in said
    assert "each vLLM server needs 28.4 GiB for weights" in said
    assert "keys and values   " not in said


def test_a_trainer_of_another_kind():
    settings = {"model": {"path": str(MODELS / "Meta-Llama-3-8B-Instruct"), "dtype": "bfloat16", "lora": {"rank": 8}}}
    assert "8.03 B parameters" in dry_run(lspo.make_config(settings))
