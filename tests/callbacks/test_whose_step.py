"""EnergyMonitor beside several optimizers: at whose step it reads, and whose weight decay it takes for λ."""

import warnings

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_leaky import EnergyMonitor
from lightning_leaky.functional import objective_weight_decay
from lightning_leaky.utilities.optimizer_steps import optimizer_weight_decay
from tests.blocks import Block, effective_dimension
from tests.callbacks.helpers import DEFAULTS

WIDTH, DECAY = 6, 0.03


def body(num_layers=3):
    return nn.Sequential(*(Block() for _ in range(num_layers)))


def sgd(module, lr=0.0, **changes):
    return torch.optim.SGD(module.parameters(), lr, **({"weight_decay": DECAY} | changes))


def loader(num_batches=1):
    generator = torch.Generator().manual_seed(1)
    return DataLoader([torch.randn(9, WIDTH, generator=generator) for _ in range(num_batches)], batch_size=None)


def told(caught, *parts):
    """What was said that holds all of some words."""
    said = [str(one.message) for one in caught]
    return [text for text in said if all(part in text for part in parts)]


def momenta_by_hand(blocks, loss, num_layers=3, decay=DECAY):
    """‖∂C/∂A_l‖/λ over all passes of some blocks that a loss makes."""
    passed = [[] for _ in blocks]
    handles = [
        block.register_forward_hook(lambda block, args, out, place=place: place.append(out))
        for block, place in zip(blocks, passed, strict=True)
    ]
    value = loss()
    norms = [sum(g.square().sum() for g in torch.autograd.grad(value, place, retain_graph=True)) for place in passed]
    for handle in handles:
        handle.remove()
    return torch.stack(norms).sqrt().double() / objective_weight_decay(decay, num_layers, 0.0)


# At whose step.


class Gan(LightningModule):
    """A generator `g` and a critic `d`; a turn of one is its forward pass, its backward pass, and its step."""

    automatic_optimization = False

    def __init__(self, order="gd", toggles=False, critic_every=1, lr=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.g, self.d = body(), body()
        self.order, self.toggles, self.critic_every, self.lr = order, toggles, critic_every, lr

    def loss(self, who, real):
        fake = self.g(real.flip(0))
        if who == "g":
            return nn.functional.softplus(-self.d(fake).sum(1)).mean()
        return nn.functional.softplus(-self.d(real).sum(1)).mean() + self.d(fake.detach()).exp().mean()

    def training_step(self, batch, batch_idx):
        for who in self.order:
            if who == "d" and (batch_idx + 1) % self.critic_every:
                continue
            optimizer = self.optimizers()["gd".index(who)]
            if self.toggles:
                self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(self.loss(who, batch))
            optimizer.step()
            if self.toggles:
                self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return [sgd(self.g, self.lr), sgd(self.d, self.lr)]


class OneFake(Gan):
    """The fake is made once, for both turns."""

    def training_step(self, batch, batch_idx):
        of_g, of_d = self.optimizers()
        fake = self.g(batch.flip(0))
        of_d.zero_grad()
        real = nn.functional.softplus(-self.d(batch).sum(1)).mean()
        self.manual_backward(real + self.d(fake.detach()).exp().mean())
        of_d.step()
        of_g.zero_grad()
        self.manual_backward(nn.functional.softplus(-self.d(fake).sum(1)).mean())
        of_g.step()


@pytest.mark.parametrize("watched", ["g", "d"])
@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (Gan, {"order": "gd"}),
        (Gan, {"order": "dg"}),
        (Gan, {"order": "gd", "toggles": True}),
        (Gan, {"order": "dg", "toggles": True}),
        (OneFake, {}),
    ],
)
def test_momenta_are_of_the_loss_that_the_watched_network_is_trained_on(make_trainer, cls, settings, watched):
    gan, data, monitor = cls(**settings), loader(), EnergyMonitor(f"{watched}.*", ["momentum_norm"])
    make_trainer(monitor, max_epochs=1).fit(gan, data)
    (batch,) = data
    expected = momenta_by_hand(getattr(gan, watched), lambda: gan.loss(watched, batch))
    torch.testing.assert_close(monitor.readings["train"]["momentum_norm"], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("watched", ["g", "d"])
def test_energies_are_of_the_weights_before_their_own_step(make_trainer, watched):
    gan, inputs = Gan("gd", lr=0.1), []
    getattr(gan, watched)[1].register_forward_pre_hook(lambda block, args: inputs.append(args[0].detach().clone()))
    monitor = EnergyMonitor(f"{watched}.*", ["cost_of_identity"])
    make_trainer(monitor, max_epochs=1).fit(gan, loader())
    # The passes of its own turn: G's one with the fake first, D's two after the one of G's turn.
    own = inputs[:1] if watched == "g" else inputs[1:]
    expected = effective_dimension(torch.cat(own))
    torch.testing.assert_close(monitor.readings["train"]["cost_of_identity"][1], expected, rtol=1e-5, atol=0)


def test_a_batch_in_which_the_layers_take_no_step_has_no_momenta(make_trainer):
    """The critic steps in every third batch: G's loss, which runs through it too, is not taken for its own."""
    seen, asked = {}, {2: ["momentum_norm"], 3: ["momentum_norm"], 1: ["cost_of_identity"]}
    for period, quantities in asked.items():
        monitor = EnergyMonitor("d.*", quantities, every_n_steps=period)
        steps = seen.setdefault(period, [])
        monitor.on_readings = lambda trainer, module, monitor, stage, steps=steps: steps.append(monitor.step + 1)
        gan, data = Gan("gd", critic_every=3), loader(6)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make_trainer(monitor, max_epochs=1).fit(gan, data)
        assert len(told(caught, "momenta belong to a step")) == (period == 2)
        if quantities == ["momentum_norm"]:
            expected = momenta_by_hand(gan.d, lambda gan=gan, data=data: gan.loss("d", list(data)[-1]))
            torch.testing.assert_close(monitor.readings["train"]["momentum_norm"], expected, rtol=1e-5, atol=0)
    assert seen == {1: [1, 2, 3, 4, 5, 6], 2: [6], 3: [3, 6]}


class ByHand(LightningModule):
    """Steps every few batches, by Lightning's optimizer or around it."""

    automatic_optimization = False

    def __init__(self, every, around, zeroes_first=False):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = body()
        self.every, self.around, self.zeroes_first = every, around, zeroes_first

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=not self.around)
        if self.zeroes_first:
            optimizer.zero_grad()
        self.manual_backward(self.blocks(batch).square().mean() / self.every)
        if (batch_idx + 1) % self.every == 0:
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        return sgd(self.blocks, 0.1)


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize(
    ("every", "zeroes_first", "read"), [(1, False, [1, 2, 3, 4]), (2, False, []), (2, True, [2, 4])]
)
def test_gradients_that_add_up_over_batches_are_no_momenta_of_one(make_trainer, around, every, zeroes_first, read):
    """A step of two batches is read of neither; one whose gradients were zeroed in between is of its own batch."""
    for quantity, expected in (("momentum_norm", read), ("cost_of_identity", [1, 2, 3, 4])):
        steps, monitor = [], EnergyMonitor("blocks.*", [quantity])
        monitor.on_readings = lambda trainer, module, monitor, stage, steps=steps: steps.append(monitor.step + 1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make_trainer(monitor, max_epochs=1).fit(ByHand(every, around, zeroes_first), loader(4))
        assert steps == expected
        assert len(told(caught, "momenta belong to a step")) == (expected != [1, 2, 3, 4])


def test_several_backward_passes_of_a_batch_are_one_step(make_trainer):
    """The second adds to gradients that are there: the batch's own."""

    class OneByOne(ByHand):
        def training_step(self, batch, batch_idx):
            loss = self.blocks(batch).square().mean()
            self.optimizers().zero_grad()
            self.manual_backward(loss, retain_graph=True)
            self.manual_backward(2 * loss)
            self.optimizers().step()

    module, data, monitor = OneByOne(1, False), loader(), EnergyMonitor("blocks.*", ["momentum_norm"])
    (batch,) = data
    expected = momenta_by_hand(module.blocks, lambda: 3 * module.blocks(batch).square().mean())
    make_trainer(monitor, max_epochs=1).fit(module, data)
    torch.testing.assert_close(monitor.readings["train"]["momentum_norm"], expected, rtol=1e-5, atol=0)


class Parts(LightningModule):
    """One loss, and an optimizer for each of some parts of the parameters."""

    automatic_optimization = False

    def __init__(self, *parts):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.blocks = nn.Linear(WIDTH, WIDTH), body()
        self.parts = parts

    def loss(self, batch):
        return self.blocks(self.embed(batch)).square().mean()

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        named = list(self.named_parameters())
        return [
            torch.optim.SGD([one for name, one in named if part(name)], 0.3, weight_decay=DECAY) for part in self.parts
        ]


MATRICES = (lambda name: name.endswith("weight"), lambda name: name.endswith("bias"))
OTHERS = (lambda name: name.startswith("embed"), lambda name: name.startswith("blocks"))
NONE = (lambda name: name == "embed.weight", lambda name: name == "embed.bias")


@pytest.mark.parametrize("parts", [MATRICES, MATRICES[::-1], OTHERS, NONE], ids=["split", "swapped", "other", "frozen"])
def test_it_reads_before_the_layers_move(make_trainer, parts):
    """Whether several optimizers hold a part of each layer, one holds them all, or none does."""
    module, data = Parts(*parts), loader()
    if parts is NONE:
        module.blocks.requires_grad_(False)
    (batch,) = data
    expected = momenta_by_hand(module.blocks, lambda: module.loss(batch))
    monitor = EnergyMonitor("blocks.*", ["momentum_norm"], weight_decay=objective_weight_decay(DECAY, 3, 0.0))
    make_trainer(monitor, max_epochs=1).fit(module, data)
    torch.testing.assert_close(monitor.readings["train"]["momentum_norm"], expected, rtol=1e-5, atol=0)


def test_gradients_for_a_chart_of_frozen_layers_do_not_count(make_trainer):
    """They reach no parameter of the layers that would tell: those that Lightning announces count."""

    class Charted(Parts):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.manual_backward(loss, retain_graph=True)
            torch.autograd.grad(5 * loss, self.embed.weight)
            for optimizer in self.optimizers():
                optimizer.step()

    module, data = Charted(*NONE), loader()
    module.blocks.requires_grad_(False)
    (batch,) = data
    expected = momenta_by_hand(module.blocks, lambda: module.loss(batch))
    monitor = EnergyMonitor("blocks.*", ["momentum_norm"], weight_decay=objective_weight_decay(DECAY, 3, 0.0))
    make_trainer(monitor, max_epochs=1).fit(module, data)
    torch.testing.assert_close(monitor.readings["train"]["momentum_norm"], expected, rtol=1e-5, atol=0)


def test_of_several_optimizers_the_first_batch_only_shows_where_the_blocks_are(make_trainer):
    monitor, steps = EnergyMonitor(quantities=["momentum_norm"]), []
    monitor.on_readings = lambda trainer, module, monitor, stage: steps.append(monitor.step)
    module, data = Parts(*OTHERS), loader(3)
    make_trainer(monitor, max_epochs=1).fit(module, data)
    assert steps == [1, 2]
    assert monitor.readings["train"].names == ("blocks.0", "blocks.1", "blocks.2")


@pytest.mark.parametrize("freezes", [True, False], ids=["frozen", "held by no optimizer"])
def test_a_teacher_is_not_found_for_it_is_longer(make_trainer, freezes):
    class Distilled(LightningModule):
        def __init__(self):
            super().__init__()
            self.teacher, self.student = body(4).requires_grad_(not freezes), body(2)

        def training_step(self, batch, batch_idx):
            return (self.student(batch) - self.teacher(batch)).square().mean()

        def validation_step(self, batch, batch_idx):
            self.training_step(batch, batch_idx)

        def configure_optimizers(self):
            return sgd(self.student)

    monitor = EnergyMonitor()
    make_trainer(monitor, max_epochs=1).fit(Distilled(), loader(), loader())
    assert {one.names for one in monitor.readings.values()} == {("student.0", "student.1")}
    assert set(monitor.readings) == {"train", "validate"}


# Whose weight decay.


class Decays(LightningModule):
    """Blocks beside a matrix that decays otherwise."""

    def __init__(self, beside=0.5, decay=DECAY):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.blocks = nn.Linear(WIDTH, WIDTH), body()
        self.beside, self.decay = beside, decay

    def training_step(self, batch, batch_idx):
        return self.blocks(self.embed(batch)).square().mean()

    def configure_optimizers(self):
        groups = [
            {"params": self.embed.parameters(), "weight_decay": self.beside},
            {"params": [one for one in self.blocks.parameters() if one.ndim > 1], "weight_decay": self.decay},
            {"params": [one for one in self.blocks.parameters() if one.ndim == 1], "weight_decay": 0.0},
        ]
        return torch.optim.SGD(groups, 0.0)


@pytest.mark.parametrize("layers", ["blocks.*", None], ids=["named", "found"])
def test_lambda_is_that_of_the_layers_read(make_trainer, layers):
    module, data, monitor = Decays(), loader(), EnergyMonitor(layers, ["momentum_norm"])
    make_trainer(monitor, max_epochs=1).fit(module, data)
    (batch,) = data
    expected = momenta_by_hand(module.blocks, lambda: module.training_step(batch, 0))
    torch.testing.assert_close(monitor.readings["train"]["momentum_norm"], expected, rtol=1e-5, atol=0)


def test_layers_found_without_one_lambda_are_read_without_momenta(make_trainer):
    """Those around them decay: that there is no λ of the blocks shows once they are found."""
    monitor = EnergyMonitor(quantities=["cost_of_identity", "momentum_norm"])
    with pytest.warns(UserWarning, match=r"momentum_norm.*not read: .*no one weight decay"):
        make_trainer(monitor, max_epochs=1).fit(Decays(decay=0.0), loader(2))
    assert set(monitor.readings["train"].quantities) == {"cost_of_identity"}
    assert monitor.readings["train"].is_finite()


@pytest.mark.parametrize("layers", ["blocks.*", None])
def test_momenta_are_refused_at_the_start_where_nothing_decays(make_trainer, layers):
    with pytest.raises(ValueError, match=r"`weight_decay`.*momentum_norm"):
        make_trainer(EnergyMonitor(layers, ["momentum_norm"])).fit(Decays(beside=0.0, decay=0.0), loader())


class Adapted(nn.Module):
    """h + (W + UV) h, with W frozen."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.down, self.up = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)

    def forward(self, hidden):
        return hidden + self.base(hidden) + self.up(self.down(hidden))


class LowRank(LightningModule):
    def __init__(self, holds_all, make=Adapted):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*(make() for _ in range(3)))
        self.holds_all = holds_all

    def training_step(self, batch, batch_idx):
        return self.blocks(batch).square().mean()

    def configure_optimizers(self):
        held = [one for one in self.parameters() if self.holds_all or one.requires_grad]
        return torch.optim.AdamW(held, 0.0, weight_decay=0.1)


def lora():
    """The same by the library that people use."""
    peft = pytest.importorskip("peft")
    return peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["linear"]), Block())


@pytest.mark.parametrize("make", [Adapted, lora])
@pytest.mark.parametrize("holds_all", [True, False], ids=["optimizer holds all", "optimizer holds adapters"])
def test_frozen_matrices_beside_trained_ones_have_no_lambda(make_trainer, holds_all, make):
    """Whoever holds them; by default there are no momenta, asked for they are refused by name."""
    trainer = make_trainer(EnergyMonitor("blocks.*", ["momentum_norm"]))
    with pytest.raises(ValueError, match=r"`weight_decay`.*momentum_norm"):
        trainer.fit(LowRank(holds_all, make), loader())
    monitor = EnergyMonitor("blocks.*")
    make_trainer(monitor, max_epochs=1).fit(LowRank(holds_all, make), loader())
    assert set(monitor.readings["train"].quantities) == set(DEFAULTS)


def test_lazy_weights_have_no_lambda_yet():
    layers = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4))
    assert optimizer_weight_decay([sgd(layers)], layers) == DECAY
    assert optimizer_weight_decay([sgd(layers[:1])], layers[:1]) is None
