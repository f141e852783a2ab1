"""Packed rows give the logits that transformers gives, or the model is refused."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym.errors import ConfigError, TemplateError
from agentgym.learner.attention import Packed, hidden_states, logits_at
from agentgym.learner.model import load_model, prepare
from agentgym.learner.pack import TrainRow, pack

VOCAB = 60
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}


@st.composite
def row_ids(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    prompt = rng.integers(1, VOCAB, draw(st.integers(1, 40))).tolist()
    rows = [
        [*prompt, *rng.integers(1, 3, n).tolist()] for n in draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    ]
    return rows + [row[: draw(st.integers(2, len(row)))] for row in rows[:2]]


def packed_logits(model, rows, share):
    masks = [
        TrainRow(ids, [0, *[1] * (len(ids) - 1)], [0.0] * len(ids), [0.0] * len(ids), i) for i, ids in enumerate(rows)
    ]
    (batch,) = pack(masks, 10**9, share)
    with torch.no_grad():
        return logits_at(model, hidden_states(model, batch.ids, batch.positions, batch.layout)[batch.at]), batch


@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (4, 1)], ids=["grouped", "multi-head", "multi-query"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_packed_logits_are_those_of_transformers(models, kind, heads):
    sizes = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "dtype": torch.float64}
    model, stock = models(kind, VOCAB, **sizes), models(kind, VOCAB, ready=False, **sizes)
    assert stock.config._attn_implementation == "sdpa"

    @settings(max_examples=20)
    @given(row_ids(), st.booleans())
    def check(rows, share):
        logits, _ = packed_logits(model, rows, share)
        longest = max(map(len, rows))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        valid = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        with torch.no_grad():
            alone = torch.cat([stock(torch.tensor([row])).logits[0, :-1] for row in rows])
            together = stock(padded, attention_mask=valid).logits
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-10)
        together = torch.cat([t[: len(row) - 1] for t, row in zip(together, rows, strict=True)])
        torch.testing.assert_close(logits, together, rtol=0, atol=1e-10)

    check()


@given(row_ids(), st.data())
def test_rows_see_nothing_of_each_other(models, rows, data):
    """Changing one row changes no logit of the others, and of its own only those behind the change."""
    model = models("llama", VOCAB)
    before, batch = packed_logits(model, rows, share=False)
    r = data.draw(st.integers(0, len(rows) - 1))
    j = data.draw(st.integers(0, len(rows[r]) - 1))
    changed = [list(row) for row in rows]
    changed[r][j] = changed[r][j] % (VOCAB - 1) + 1
    after, _ = packed_logits(model, changed, share=False)
    mine = torch.tensor([batch.layout.cu[r] + j <= at < batch.layout.cu[r + 1] for at in batch.at.tolist()])
    assert torch.equal(before[~mine], after[~mine])
    assert not mine.any() or not torch.equal(before[mine], after[mine])


def test_a_prepared_model_refuses_to_run_without_a_layout(models):
    with pytest.raises(ValueError, match="need a layout"):
        models()(torch.tensor([[1, 2, 3]]))


UNFIT = {
    "a window of every layer": (transformers.MistralConfig, {"sliding_window": 8}, "sliding_window"),
    "a window longer than the probe": (transformers.MistralConfig, {"sliding_window": 4096}, "sliding_window"),
    "a window of some layers": (
        transformers.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 1},
        "full attention in every layer",
    ),
    "another one": (transformers.Gemma3TextConfig, {"sliding_window": 512, "head_dim": 8}, "full attention"),
    "soft caps": (
        transformers.Gemma2Config,
        {"layer_types": ["full_attention"] * 2, "head_dim": 8, "attn_logit_softcapping": 50.0},
        "softcap",
    ),
    "sinks": (
        transformers.GptOssConfig,
        {"layer_types": ["full_attention"] * 2, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
        "s_aux",
    ),
    "scaled logits": (transformers.GraniteConfig, {"logits_scaling": 8.0}, "other logits than transformers"),
    "positions by the longest row": (
        transformers.LlamaConfig,
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
        "longest row",
    ),
    "a long and a short scale": (
        transformers.Phi3Config,
        {
            "sliding_window": None,
            "max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "long_factor": [2.0] * 4,
                "short_factor": [1.0] * 4,
                "original_max_position_embeddings": 64,
                "partial_rotary_factor": 1.0,
            },
        },
        "longest row",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_models_that_cannot_run_are_refused(case):
    config, changes, message = UNFIT[case]
    model = transformers.AutoModelForCausalLM.from_config(config(**{**SMALL, **changes}))
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(model)
    assert model.config.model_type in str(caught.value)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (transformers.MistralConfig, {"sliding_window": None}),
        (transformers.Qwen2Config, {"use_sliding_window": False, "sliding_window": 16}),
        (transformers.GraniteConfig, {"attention_multiplier": 0.3, "residual_multiplier": 0.5}),
        (transformers.LlamaConfig, {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
        (transformers.Olmo2Config, {}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_models_that_can_run_are_not(config, changes):
    model = transformers.AutoModelForCausalLM.from_config(config(**{**SMALL, **changes})).eval()
    ids = torch.arange(1, 33)
    with torch.no_grad():
        expected = model(ids[None]).logits[0]
        prepare(model)
        got = logits_at(model, hidden_states(model, ids, torch.arange(32), Packed([0, 32], [-1])))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_a_saved_model_is_loaded_as_it_was(tmp_path, models, tokenizers):
    tokenizer = tokenizers()
    stock = models("qwen3", len(tokenizer), ready=False, tie_word_embeddings=True)
    stock.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, loaded, renderer = load_model(str(tmp_path))
    ids = torch.tensor(renderer.tokenizer.encode("take the apple"))
    with torch.no_grad():
        got = logits_at(model, hidden_states(model, ids, torch.arange(len(ids)), Packed([0, len(ids)], [-1])))
        torch.testing.assert_close(got, stock(ids[None]).logits[0], rtol=0, atol=1e-5)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert renderer.close == "<|end|>"


def test_folders_without_a_model_that_fits(tmp_path, models, tokenizers):
    with pytest.raises(ConfigError, match=r"no model in .*config\.json"):
        load_model(str(tmp_path))
    models("llama", 100, ready=False).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="cannot load the model"):
        load_model(str(tmp_path))
    tokenizers(None).save_pretrained(tmp_path)
    with pytest.raises(TemplateError, match="no chat template"):
        load_model(str(tmp_path))
    tokenizers().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="knows 100 tokens, but its tokenizer goes up to id"):
        load_model(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="cannot load the model"):
        load_model(str(tmp_path))
