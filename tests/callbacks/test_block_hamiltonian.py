"""Pontryagin's Hamiltonian in training: from the parameters' own gradients, of what the optimizers decay."""

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lightning_leaky import EnergyMonitor
from lightning_leaky.functional import objective_weight_decay, pontryagin_hamiltonian, pontryagin_residual
from tests.callbacks.test_whose_step import told

WIDTH, DECAY, LAYERS = 6, 0.03, 3
OF_BLOCKS = ["pontryagin_hamiltonian", "pontryagin_residual"]


class Block(nn.Module):
    """h + W₂ tanh(W₁h + b₁)."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, hidden):
        return hidden + self.second(torch.tanh(self.first(hidden)))


class Normalised(Block):
    """h + W₂ tanh(LN(W₁h + b₁))."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, hidden):
        return hidden + self.second(torch.tanh(self.norm(self.first(hidden))))


class Module(LightningModule):
    """Blocks behind a map, with an optimizer made by a function of the module."""

    def __init__(self, make_optimizer, block=Block, lam=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.blocks = nn.Linear(WIDTH, WIDTH), nn.Sequential(*(block() for _ in range(LAYERS)))
        self.make_optimizer, self.lam = make_optimizer, lam

    def cost(self, batch):
        return (self.blocks(self.embed(batch)) - batch.roll(1, -1)).square().mean()

    def training_step(self, batch, batch_idx):
        squares = sum(one.square().sum() for one in self.blocks.parameters())
        return self.cost(batch) + self.lam * LAYERS / 2 * squares

    def configure_optimizers(self):
        return self.make_optimizer(self)


def matrices_decay(optimizer, **settings):
    """Two parameter groups: what has two axes decays, the rest does not."""

    def make(module):
        return optimizer(
            [
                {"params": [one for one in module.parameters() if one.ndim > 1], "weight_decay": DECAY},
                {"params": [one for one in module.parameters() if one.ndim == 1], "weight_decay": 0.0},
            ],
            **({"lr": 0.0} | settings),
        )

    return make


def everything_decays(optimizer, **settings):
    return lambda module: optimizer(module.parameters(), **({"lr": 0.0, "weight_decay": DECAY} | settings))


def loader(rows, size):
    generator = torch.Generator().manual_seed(1)
    return DataLoader(torch.randn(rows, WIDTH, generator=generator), batch_size=size)


def by_hand(module, inputs, decay_of, parameters_of=lambda block: list(block.parameters())):
    """Both readings of each block from autograd."""
    path = [module.embed(inputs)]
    for block in module.blocks:
        path.append(block(path[-1]))
    cost = (path[-1] - inputs.roll(1, -1)).square().mean()
    found = []
    for number, block in enumerate(module.blocks):
        theta = parameters_of(block)
        decays = [decay_of(one) for one in theta]
        gradients = torch.autograd.grad(cost, [path[number + 1], *theta], retain_graph=True)
        paid = sum(d / 2 * one.detach().square().sum() for d, one in zip(decays, theta, strict=True))
        ends = (one.detach() for one in path[number : number + 2])
        energy = pontryagin_hamiltonian(gradients[0], *ends, paid, 1 / LAYERS)
        found.append((energy, pontryagin_residual([one.detach() for one in theta], gradients[1:], decays)))
    return dict(zip(OF_BLOCKS, map(torch.stack, zip(*found, strict=True)), strict=True))


def kept_of(block):
    """Parameters of a block but for those before its normalisation, if it has one."""
    return [block.second.weight, *block.norm.parameters()] if isinstance(block, Normalised) else [*block.parameters()]


def assert_reads(monitor, expected, rtol=1e-4):
    for key, wanted in expected.items():
        size = float(wanted.abs().max())
        torch.testing.assert_close(monitor.readings["train"][key], wanted, rtol=rtol, atol=rtol * size, msg=key)


def of_matrices(one):
    return DECAY if one.ndim > 1 else 0.0


@pytest.mark.parametrize("layers", ["blocks.*", None])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize(("accumulated", "rows"), [(1, 12), (3, 12), (3, 8)], ids=["one", "three", "a last two"])
def test_readings_are_those_of_the_objective_of_a_step(make_trainer, layers, optimizer, accumulated, rows):
    """Over all of its micro-batches, before it, with the decay of each parameter group."""
    module, data = Module(matrices_decay(optimizer)), loader(rows, 12 if accumulated == 1 else 4)
    monitor = EnergyMonitor(layers, OF_BLOCKS, every_n_steps=1)
    make_trainer(monitor, max_epochs=1, accumulate_grad_batches=accumulated).fit(module, data)
    assert_reads(monitor, by_hand(module, torch.cat(list(data)), of_matrices))


def test_losses_are_the_same_bits_and_gradients_are_left_alone(make_trainer):
    def run(*callbacks):
        module = Module(matrices_decay(torch.optim.SGD, lr=0.1, momentum=0.9))
        make_trainer(*callbacks, max_epochs=3).fit(module, loader(12, 4))
        return [one.detach().clone() for one in module.parameters()]

    for one, other in zip(run(), run(EnergyMonitor("blocks.*", OF_BLOCKS, every_n_steps=1)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("block", [Block, Normalised])
def test_a_lambda_in_the_loss_is_no_part_of_the_cost(make_trainer, block):
    """What the parameters' gradients have of it is what decays; nor does it give weights a scale that had none."""
    lam, data = 0.02, loader(36, 12)
    module = Module(everything_decays(torch.optim.SGD, weight_decay=0.0), block, lam)
    monitor = EnergyMonitor("blocks.*", OF_BLOCKS, every_n_steps=1, weight_decay=lam)
    make_trainer(monitor, max_epochs=1).fit(module, data)
    assert_reads(monitor, by_hand(module, list(data)[-1], lambda one: lam * LAYERS, kept_of))


def test_a_lambda_that_says_what_the_optimizer_does_changes_nothing(make_trainer):
    lam, data = objective_weight_decay(DECAY, LAYERS, 0.0), loader(12, 12)
    module = Module(everything_decays(torch.optim.SGD))
    monitor = EnergyMonitor("blocks.*", OF_BLOCKS, every_n_steps=1, weight_decay=lam)
    make_trainer(monitor, max_epochs=1).fit(module, data)
    assert_reads(monitor, by_hand(module, *data, lambda one: DECAY))


@pytest.mark.parametrize("fused", [False, True])
def test_the_gradient_scaler_is_undone(make_trainer, fused):
    """Whether Lightning has unscaled the gradients before the step or the optimizer will do it in its own."""
    module, data = Module(everything_decays(torch.optim.SGD, fused=fused)), loader(12, 4)
    monitor, scaler = (
        EnergyMonitor("blocks.*", OF_BLOCKS, every_n_steps=1),
        torch.amp.GradScaler("cpu", init_scale=2.0**10),
    )
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    make_trainer(monitor, max_epochs=1, accumulate_grad_batches=3, plugins=[precision]).fit(module, data)
    assert_reads(monitor, by_hand(module, torch.cat(list(data)), lambda one: DECAY), rtol=2e-2)


def test_weights_before_a_normalisation_are_left_out(make_trainer):
    """Though the linear map's bias takes part in the scale, and does not decay; several steps tell."""
    module, data = Module(matrices_decay(torch.optim.SGD), Normalised), loader(36, 12)
    monitor = EnergyMonitor("blocks.*", OF_BLOCKS, every_n_steps=1)
    make_trainer(monitor, max_epochs=1).fit(module, data)
    kept = by_hand(module, list(data)[-1], of_matrices, lambda block: [block.second.weight, *block.norm.parameters()])
    assert_reads(monitor, kept)


DECOUPLED = [
    everything_decays(torch.optim.AdamW),
    everything_decays(torch.optim.Adam, decoupled_weight_decay=True),
    everything_decays(torch.optim.Adafactor),
    everything_decays(torch.optim.SGD, maximize=True),
]


@pytest.mark.parametrize("make", DECOUPLED, ids=["AdamW", "Adam, decoupled", "Adafactor", "ascent"])
@pytest.mark.parametrize("key", OF_BLOCKS)
def test_without_an_objective_they_are_refused_by_name(make_trainer, make, key):
    trainer = make_trainer(EnergyMonitor("blocks.*", [key]), max_epochs=1)
    with pytest.raises(ValueError, match=rf"`quantities` cannot include \['{key}'\].*AdamW.*no objective"):
        trainer.fit(Module(make), loader(12, 12))


@pytest.mark.parametrize("block", [Block, Normalised])
def test_beside_adamw_a_lambda_is_enough_for_the_hamiltonian_alone(make_trainer, block):
    """Read as if it were in the objective; the residual has nothing to be small for."""
    lam, data = objective_weight_decay(DECAY, LAYERS, 0.0), loader(36, 12)
    module = Module(everything_decays(torch.optim.AdamW), block)
    monitor = EnergyMonitor("blocks.*", OF_BLOCKS[:1], every_n_steps=1, weight_decay=lam)
    make_trainer(monitor, max_epochs=1).fit(module, data)
    expected = by_hand(module, list(data)[-1], lambda one: DECAY, kept_of)
    assert_reads(monitor, {OF_BLOCKS[0]: expected[OF_BLOCKS[0]]})
    trainer = make_trainer(EnergyMonitor("blocks.*", OF_BLOCKS, weight_decay=lam), max_epochs=1)
    with pytest.raises(ValueError, match=r"cannot include \['pontryagin_residual'\] beside"):
        trainer.fit(module, data)


def test_layers_that_are_found_without_an_objective_are_read_without_them(make_trainer, recwarn):
    monitor = EnergyMonitor(None, ["relative_speed", *OF_BLOCKS], every_n_steps=1)
    make_trainer(monitor, max_epochs=2).fit(Module(everything_decays(torch.optim.AdamW)), loader(12, 12))
    assert set(monitor.readings["train"].quantities) == {"relative_speed"}
    assert len(told(recwarn, "no objective")) == 1


def test_nothing_decays(make_trainer):
    trainer = make_trainer(EnergyMonitor("blocks.*", OF_BLOCKS), max_epochs=1)
    with pytest.raises(ValueError, match="without trainable parameters that decay"):
        trainer.fit(Module(everything_decays(torch.optim.AdamW, weight_decay=0.0)), loader(12, 12))


class Around(Module):
    """Steps around Lightning's optimizer."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(self.cost(batch))
        optimizer.step()
        optimizer.zero_grad()


def test_a_step_that_is_not_heard_of_leaves_no_gradients(make_trainer, recwarn):
    monitor = EnergyMonitor("blocks.*", ["first_order", *OF_BLOCKS], every_n_steps=1)
    make_trainer(monitor, max_epochs=2).fit(Around(everything_decays(torch.optim.SGD)), loader(12, 12))
    assert set(monitor.readings["train"].quantities) == {"first_order"}
    assert len(told(recwarn, "quantities of parameters are not read")) == 1


def test_by_default_they_are_not_read(make_trainer):
    monitor = EnergyMonitor("blocks.*", every_n_steps=1)
    make_trainer(monitor, max_epochs=1).fit(Module(everything_decays(torch.optim.SGD)), loader(12, 12))
    assert not {*OF_BLOCKS, "hamiltonian"} & set(monitor.readings["train"].quantities)
