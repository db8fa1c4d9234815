"""Looking at weights changes nothing: not those that are computed when they are looked at, and not the training."""

import copy

import lightning
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lightning_leaky import EnergyMonitor, LeakyResNet, LeakyResNetModule
from lightning_leaky.models import LeakyLayer
from lightning_leaky.paths.leaky_path import LayerWeights


class Noisy(nn.Module):
    """Counts, and answers differently in training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, weight):
        if not self.training:
            return weight
        self.count += 1
        return weight + torch.randn_like(weight)


def computed(layer):
    """A weight that a property computes."""

    class Computed(LeakyLayer):
        @property
        def weight(self):
            return self.drawn + torch.randn_like(self.drawn) if self.training else self.drawn

    layer.drawn = nn.Parameter(layer.weight.detach().clone())
    del layer.weight
    layer.__class__ = Computed


KINDS = {
    "spectral norm": parametrizations.spectral_norm,
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "noise": lambda layer: parametrize.register_parametrization(layer, "weight", Noisy()),
    "old spectral norm": nn.utils.spectral_norm,
    "old weight norm": nn.utils.weight_norm,
    "property": computed,
}
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*weight_norm:DeprecationWarning")
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)

READS = {
    "weights": lambda network: network.weights(),
    "augmented_weight": lambda network: torch.stack([layer.augmented_weight() for layer in network.layers]),
    "LayerWeights": lambda network: torch.stack(list(LayerWeights(network, range(len(network.layers))))),
    "print": repr,
}


@every_kind
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_look_leaves_everything_as_it_was(kind, read, make_network):
    network = make_network()
    for layer in network.layers:
        kind(layer)
    network.layers[1].eval()
    inputs = torch.randn(5, 3)
    network(inputs)
    state, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    modes = [module.training for module in network.modules()]
    read(network)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("kind", [kind for name, kind in KINDS.items() if name not in ("noise", "property")])
@pytest.mark.parametrize("is_training", [True, False])
def test_the_weight_read_is_the_one_that_has_run(kind, is_training, make_network, monkeypatch):
    used = []
    step = LeakyLayer.forward.__globals__["leaky_step"]
    monkeypatch.setitem(LeakyLayer.forward.__globals__, "leaky_step", lambda *args: used.append(args[1]) or step(*args))
    network = make_network().train(is_training)
    for layer in network.layers:
        kind(layer)
    network(torch.randn(5, 3))
    for read in ("weights", "augmented_weight", "LayerWeights"):
        assert torch.equal(READS[read](network)[..., :-1], torch.stack(used))


def test_flags_come_back_after_an_error(make_network):
    class Broken(nn.Module):
        def forward(self, weight):
            raise RuntimeError("broken") if not self.training else weight

    network: LeakyResNet = make_network()
    parametrize.register_parametrization(network.layers[0], "weight", Broken(), unsafe=True)
    network.train()
    with pytest.raises((RuntimeError, TypeError)):
        network.weights()
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("name", ["spectral norm", "old spectral norm", "noise"])
def test_losses_with_and_without_a_monitor_are_the_same_bits(name, make_data, make_trainer):
    class Losses(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            seen[-1].append(float(outputs["loss"]))

    seen = []
    for callbacks in ([], [EnergyMonitor(every_n_steps=1)]):
        lightning.seed_everything(0, verbose=False)
        module = LeakyResNetModule(3, 2, width=6, num_layers=4, effective_depth=2.0, weight_decay=0.1)
        for layer in module.network.layers:
            KINDS[name](layer)
        seen.append([])
        make_trainer(Losses(), *callbacks).fit(module, datamodule=make_data())
    assert seen[0]
    assert seen[0] == seen[1]
