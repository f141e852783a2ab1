"""With gradient checkpointing a step is the same to the bit, and of the layers only their inputs are kept."""

import copy

import numpy as np
import pytest
import torch
from conftest import KINDS

from agentgym.learner.learner import Learner, OptimConfig
from agentgym.learner.logprobs import token_logprobs
from agentgym.learner.lora import LoraConfig, add_adapter
from agentgym.learner.losses import sft_loss
from agentgym.learner.model import frozen_copy
from agentgym.learner.pack import TrainRow, pack

VOCAB = 40


@pytest.fixture
def batches():
    """Micro-batches of rows that share a beginning."""
    rng = np.random.default_rng(0)
    shared = rng.integers(1, VOCAB, 20).tolist()
    rows = []
    for i in range(6):
        ids = [*shared, *rng.integers(1, VOCAB, 12 + i).tolist()]
        rows.append(TrainRow(ids, [0] * 20 + [1] * (len(ids) - 20), [0.0] * len(ids), [1.0] * len(ids), i))
    packed = pack(rows, 80)
    assert len(packed) > 1
    for batch in packed:
        batch.weights = torch.full((len(batch.targets),), 1 / 87)
    return packed


def loss(out, batch):
    return (batch.weights * sft_loss(out.logp)).sum(), {}


def stepped(model, batches, **settings):
    """Parameters after a step, and how often the first layer began."""
    runs = []
    learner = Learner(model, OptimConfig(lr=1e-2, **settings))
    first = model.get_decoder().layers[0].self_attn
    hook = first.register_forward_pre_hook(lambda *args: runs.append(torch.is_grad_enabled()))
    learner.step(batches, loss)
    hook.remove()
    return {name: p.detach() for name, p in model.named_parameters()}, runs


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_same_to_the_bit(kind, adapted, autocast, models, batches):
    model = models(kind, VOCAB)
    if adapted:
        model = add_adapter(model, LoraConfig(rank=2), 0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    plain, once = stepped(copy.deepcopy(model), batches, autocast=autocast)
    found, twice = stepped(model, batches, autocast=autocast, gradient_checkpointing=True)
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert (len(once), len(twice)) == (len(batches), 2 * len(batches))


def test_of_a_layer_only_its_input_is_kept(models, batches):
    def kept(model):
        found = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = token_logprobs(model, batches[0])
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(size for key, (size, _) in found.items() if key not in own), out

    small, large = (models(vocab_size=VOCAB, num_hidden_layers=n) for n in (2, 6))
    plain = kept(large)[0] - kept(small)[0]
    for model in (small, large):
        Learner(model, OptimConfig(gradient_checkpointing=True))
    inputs = 4 * len(batches[0].ids) * 32 * 4  # four more layers, width 32, float32
    assert kept(large)[0] - kept(small)[0] == inputs
    assert plain > 8 * inputs


def test_nothing_is_computed_again_without_a_gradient_and_copies_are_independent(models, batches):
    model = models(vocab_size=VOCAB)
    Learner(model, OptimConfig(gradient_checkpointing=True))
    copied = frozen_copy(model)
    with torch.no_grad():
        before = token_logprobs(model, batches[0]).logp
        for parameter in model.parameters():
            parameter.mul_(1.5)
        assert torch.equal(token_logprobs(copied, batches[0]).logp, before)
        assert not torch.equal(token_logprobs(model, batches[0]).logp, before)
    assert model.state_dict().keys() == models(vocab_size=VOCAB).state_dict().keys()
