"""Other people's loops: which backward pass and which optimizer's step a reading belongs to."""

import copy
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_leaky import EnergyMonitor, LeakyResNet, StepSizeAdapter, StepSizeHook
from lightning_leaky.functional import objective_weight_decay
from tests.others.loops import (
    DECAY,
    ENERGIES,
    WIDTH,
    Block,
    ByHand,
    Loop,
    Passed,
    blocks,
    close,
    close_to,
    fit,
    points,
    read,
    right_or_refused,
    sgd,
    told,
    unless_refused,
)
from tests.others.stubs import timm_module

MOMENTA = ["momentum_norm"]


# 3. Backward passes and steps.


class Gan(ByHand):
    """A generator g and a critic d; each turn is a sum of losses."""

    def __init__(self, turns="dg", zeroes=True, toggles=False, critic_every=1):
        super().__init__(nn.Identity())
        self.g, self.d = blocks(), blocks()
        self.turns, self.zeroes, self.toggles, self.critic_every = turns, zeroes, toggles, critic_every

    def losses(self, who, real):
        fake = self.g(real.flip(0))
        if who == "g":
            return [F.softplus(-self.d(fake).sum(1)).mean()]
        return [F.softplus(-self.d(real).sum(1)).mean(), 3 * F.softplus(self.d(fake.detach()).sum(1)).mean()]

    def training_step(self, batch, batch_idx):
        for who in self.turns:
            if who == "d" and (batch_idx + 1) % self.critic_every:
                continue
            optimizer = self.optimizers()["gd".index(who)]
            if self.toggles:
                self.toggle_optimizer(optimizer)
            if self.zeroes:
                optimizer.zero_grad()
            for loss in self.losses(who, batch):
                self.manual_backward(loss)
            optimizer.step()
            if not self.zeroes:
                optimizer.zero_grad()
            if self.toggles:
                self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return [sgd(self.g), sgd(self.d)]

    def right(self, watched, real, turns=None):
        """Momenta of the watched network in its own turn, or over some."""
        layers = getattr(self, watched)
        return Passed(layers, lambda: sum(sum(self.losses(who, real)) for who in turns or watched)).momenta()


def two_backward_calls_for_the_critic():
    for turns in ("dg", "gd"):
        for layers in ("d.*", "g.*"):
            gan = Gan(turns)
            readings, _ = read(gan, [points(), points(seed=2)], layers, MOMENTA)
            close(readings["momentum_norm"], gan.right(layers[0], points(seed=2)))


def gradients_that_the_generator_leaves_in_the_critic():
    """Zeroed before the critic's turn they count for nothing; where they are not zeroed its step uses them."""
    for settings, turns in (({"zeroes": True}, "d"), ({"toggles": True}, "d"), ({"zeroes": False}, "gd")):
        gan = Gan("gd", **settings)
        readings, said = read(gan, [points()], "d.*", MOMENTA)
        close(readings["momentum_norm"], gan.right("d", points(), turns))
        assert not told(said, "shared weights"), said


def a_critic_that_steps_every_second_batch():
    gan, data = Gan("gd", critic_every=2), [points(seed=seed) for seed in range(5)]
    readings, said = read(gan, data, "d.*", MOMENTA)
    close(readings["momentum_norm"], gan.right("d", data[3]))
    assert len(told(said, "not read")) == 1, said
    readings, _ = read(Gan("gd", critic_every=2), data, "g.*", MOMENTA)
    close(readings["momentum_norm"], gan.right("g", data[4]))


def a_gradient_penalty_in_the_loss():
    class Penalised(Loop):
        def training_step(self, batch, batch_idx):
            inputs = batch.clone().requires_grad_()
            value = self.net(inputs)
            (slope,) = torch.autograd.grad(value.sum(), inputs, create_graph=True)
            return value.square().mean() + (slope.norm(dim=1) - 1).square().mean()

    module = Penalised()
    readings, _ = read(module, [points(), points(seed=2)], "net.*", MOMENTA)
    close(readings["momentum_norm"], Passed(module.net, lambda: module.training_step(points(seed=2), 0)).momenta())


def weights_of_losses_from_their_gradients():
    class Weighted(ByHand):
        def losses(self, batch):
            out = self.net(batch)
            small, large = out[:, 0].square().mean(), 50 * out[:, 1].square().mean()
            last = self.net[-1].linear.weight
            norms = [torch.autograd.grad(one, last, retain_graph=True)[0].norm() for one in (small, large)]
            return small + (norms[0] / norms[1]).detach() * large

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            loss = self.losses(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    module = Weighted()
    readings, _ = read(module, [points()], "net.*", MOMENTA)
    close(readings["momentum_norm"], Passed(module.net, lambda: module.losses(points())).momenta())


def backward_in_place_of_manual_backward():
    class Own(ByHand):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            out = self.net(batch)
            optimizer.zero_grad()
            out[:, 0].square().mean().backward(retain_graph=True)
            (9 * out[:, 1].square().mean()).backward()
            optimizer.step()

    def loss():
        out = module.net(points())
        return out[:, 0].square().mean() + 9 * out[:, 1].square().mean()

    module = Own()
    for layers in ("net.*", None):
        readings, _ = read(module, [points(seed=2), points()], layers, MOMENTA)
        close(readings["momentum_norm"], Passed(module.net, loss).momenta())


def parameters_of_a_block_that_get_no_gradient():
    class Routed(nn.Module):
        """Of its experts the last is asked."""

        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))
            self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, hidden):
            return hidden + self.experts[-1](hidden).tanh()

    torch.manual_seed(0)
    module, batch = Loop(nn.Sequential(Routed(), Routed(), Routed())), points()
    want = Passed(module.net, lambda: module(batch).square().mean()).momenta()
    for layers in ("net.*", None):
        readings, _ = read(module, [batch, batch], layers, MOMENTA)
        close(readings["momentum_norm"], want)


def frozen_blocks_between_trained_maps():
    """No gradient is accumulated in them, and one more is taken for a chart: the trainer tells which one counts."""

    class Reprogrammed(ByHand):
        def __init__(self):
            super().__init__(nn.Sequential(nn.Linear(WIDTH, WIDTH), blocks(), nn.Linear(WIDTH, 2)))
            self.net[1].requires_grad_(False)

        def training_step(self, batch, batch_idx):
            optimizer, out = self.optimizers(), self.net(batch)
            optimizer.zero_grad()
            torch.autograd.grad(100 * out[:, 0].square().mean(), list(self.net[0].parameters()), retain_graph=True)
            self.manual_backward(out.square().mean())
            optimizer.step()

    module = Reprogrammed()
    want = Passed(module.net[1], lambda: module.net(points()).square().mean()).momenta()
    monitor = EnergyMonitor("net.1.*", MOMENTA, every_n_steps=1, weight_decay=objective_weight_decay(DECAY, 3, 0.0))
    said = fit(module, [points()], monitor)
    right_or_refused(monitor, said, {"momentum_norm": want}, "not read")
    with pytest.raises(ValueError, match="weight_decay"):
        fit(Reprogrammed(), [points()], EnergyMonitor("net.1.*", MOMENTA))


def gradients_that_are_zeroed_between_two_backward_calls():
    """The first ones were of a probe; zeroed in place, as older code does."""

    class Zeroed(ByHand):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            self.manual_backward(100 * self.net(batch)[:, 0].square().mean())
            optimizer.zero_grad(set_to_none=False)
            self.manual_backward(self.net(batch).square().mean())
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)

    module = Zeroed()
    want = Passed(module.net, lambda: module(points()).square().mean()).momenta()
    readings, _ = read(module, [points(seed=2), points()], "net.*", MOMENTA)
    close(readings["momentum_norm"], want)


def several_evaluations_of_one_lbfgs_step():
    class Second(Loop):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), max_iter=4)

    module = Second()
    passed = Passed(module.net, lambda: module.training_step(points(), 0))
    want = {"momentum_norm": passed.momenta(weight_decay=DECAY), **passed.energies()}
    monitor = EnergyMonitor("net.*", list(want), every_n_steps=1, weight_decay=objective_weight_decay(DECAY, 3, 0.0))
    said = fit(module, [points()], monitor)
    assert "train" in monitor.readings, said
    close_to(monitor.readings["train"], want)


def batches_that_are_added_up_by_hand():
    """Every second batch takes the step; of the others no step is theirs alone."""

    class AddedUp(ByHand):
        def training_step(self, batch, batch_idx):
            self.manual_backward(self.net(batch).square().mean() / 2)
            if batch_idx % 2:
                self.optimizers().step()
                self.optimizers().zero_grad()

    monitor = EnergyMonitor("net.*", MOMENTA, every_n_steps=1)
    said = fit(AddedUp(), [points(seed=seed) for seed in range(4)], monitor)
    assert "train" not in monitor.readings
    assert len(told(said, "not read", "step")) == 1, said


# 13. Steps that are not taken through `step()`, and optimizers around others.


def _adapted(attach, train):
    """Step-sizes after a loop, and what was said in it."""
    torch.manual_seed(0)
    network = LeakyResNet(WIDTH, WIDTH, width=8, num_layers=4, effective_depth=1.0)
    hook = StepSizeHook(network, every_n_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = attach(network, hook)
        train(network, optimizer)
    return network.step_sizes.clone(), [str(one.message) for one in caught]


class Sharp(torch.optim.Optimizer):
    """Sharpness-aware: a step up, and from there a step down by another optimizer; `step` is never called."""

    def __init__(self, parameters, base=torch.optim.SGD, lr=0.05):
        super().__init__(parameters, {})
        self.base = base(self.param_groups, lr=lr)

    @torch.no_grad()
    def first_step(self):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["up"] = 0.01 * parameter.grad
            parameter.add_(self.state[parameter]["up"])

    @torch.no_grad()
    def second_step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(self.state[parameter]["up"])
        self.base.step()

    def step(self, closure=None):
        raise RuntimeError("call first_step and second_step")


def _train_sharp(network, optimizer, steps=20):
    for seed in range(steps):
        for half in (optimizer.first_step, optimizer.second_step):
            optimizer.zero_grad()
            network(points(5, seed=seed)).square().mean().backward()
            half()


def sharpness_aware_steps():
    def outside(network, hook):
        optimizer = Sharp(network.parameters())
        hook.attach(optimizer)
        return optimizer

    def inside(network, hook):
        optimizer = Sharp(network.parameters())
        hook.attach(optimizer.base)
        return optimizer

    equal = torch.full((4,), 0.25)
    step_sizes, said = _adapted(outside, _train_sharp)
    assert not torch.allclose(step_sizes, equal.to(step_sizes)) or len(told(said, "optimizer")) == 1, said
    step_sizes, said = _adapted(inside, _train_sharp)
    assert not torch.allclose(step_sizes, equal.to(step_sizes), rtol=1e-3)
    assert not said, said


def sharpness_aware_steps_in_lightning():
    class Flat(ByHand):
        def __init__(self):
            super().__init__(LeakyResNet(WIDTH, WIDTH, width=8, num_layers=4, effective_depth=1.0))

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            for half in (optimizer.first_step, optimizer.second_step):
                optimizer.zero_grad()
                self.manual_backward(self.net(batch).square().mean())
                half()

        def configure_optimizers(self):
            return Sharp(self.net.parameters())

    module, monitor = Flat(), EnergyMonitor(quantities=ENERGIES, every_n_steps=1)
    said = fit(module, [points(5, seed=seed) for seed in range(20)], monitor, StepSizeAdapter(every_n_steps=1))
    moved = not torch.allclose(module.net.step_sizes, torch.full((4,), 0.25).to(module.net.step_sizes), rtol=1e-3)
    assert moved or told(said, "optimizer", "step"), said
    assert "train" in monitor.readings, said


def momenta_of_a_sharpness_aware_step():
    """The step is made of the gradients at the upper point."""

    class Flat(ByHand):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            for half in (optimizer.first_step, optimizer.second_step):
                optimizer.zero_grad()
                self.manual_backward(self.net(batch).square().mean())
                half()

        def configure_optimizers(self):
            return Sharp(self.net.parameters(), lr=0.01)

    module, batch = Flat(), points()
    upper = copy.deepcopy(module.net)
    gradients = torch.autograd.grad(upper(batch).square().mean(), list(upper.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(upper.parameters(), gradients, strict=True):
            parameter.add_(0.01 * gradient)
    want = Passed(upper, lambda: upper(batch).square().mean()).momenta()
    monitor = EnergyMonitor("net.*", MOMENTA, every_n_steps=1, weight_decay=objective_weight_decay(DECAY, 3, 0.0))
    said = fit(module, [batch], monitor)
    right_or_refused(monitor, said, {"momentum_norm": want}, "not read")


def steps_that_a_scaler_skips():
    def train(network, optimizer):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for seed in range(6):
            optimizer.zero_grad()
            loss = network(points(5, seed=seed)).square().mean()
            scaler.scale(loss * (float("inf") if seed in (1, 4) else 1)).backward()
            scaler.step(optimizer)
            scaler.update()

    def without_them(network, optimizer):
        for seed in (0, 2, 3, 5):
            optimizer.zero_grad()
            network(points(5, seed=seed)).square().mean().backward()
            optimizer.step()

    def attach(network, hook):
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        hook.attach(optimizer)
        return optimizer

    want, _ = _adapted(attach, without_them)
    got, said = _adapted(attach, train)
    moved = float((got - 0.25).abs().max())
    assert moved > 1e-3
    assert float((got - want).abs().max()) < 0.5 * moved or told(said, "step")


def an_optimizer_that_accelerate_has_prepared():
    from accelerate import Accelerator

    def plain(network, hook):
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        hook.attach(optimizer)
        return optimizer

    def train(network, optimizer):
        for first in range(0, 8, 2):
            optimizer.zero_grad()
            for seed in (first, first + 1):
                (network(points(5, seed=seed)).square().mean() / 2).backward()
            optimizer.step()

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)

    def prepared(network, hook):
        network, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), 0.1))
        hook.attach(optimizer)
        return optimizer

    def train_prepared(network, optimizer):
        for seed in range(8):
            with accelerator.accumulate(network):
                accelerator.backward(network(points(5, seed=seed)).square().mean())
                optimizer.step()
                optimizer.zero_grad()

    want, _ = _adapted(plain, train)
    assert float((want - 0.25).abs().max()) > 1e-3
    adapted = unless_refused(lambda: _adapted(prepared, train_prepared), "optimizer")
    if adapted is not None:
        close(adapted[0], want, 1e-6)
        assert not told(adapted[1], "optimizer"), adapted[1]


def lookahead_of_timm_and_its_like():
    lookahead = timm_module("timm.optim").Lookahead

    class Wrapping:
        """One that is no Optimizer, but steps one."""

        def __init__(self, optimizer):
            self.optimizer = optimizer
            self.param_groups, self.zero_grad = optimizer.param_groups, optimizer.zero_grad

        def step(self):
            self.optimizer.step()

    def train(network, optimizer):
        for seed in range(20):
            optimizer.zero_grad()
            network(points(5, seed=seed)).square().mean().backward()
            optimizer.step()

    for around in (lookahead, Wrapping):

        def attach(network, hook, around=around):
            optimizer = around(torch.optim.SGD(network.parameters(), 0.05))
            hook.attach(optimizer)
            return optimizer

        adapted = unless_refused(lambda attach=attach: _adapted(attach, train), "optimizer")
        if adapted is not None:
            moved = not torch.allclose(adapted[0], torch.full_like(adapted[0], 0.25), rtol=1e-3)
            assert moved or told(adapted[1], "optimizer", "step"), adapted[1]


# 16. λ of layers that are not known yet.


def weight_decay_on_the_blocks_alone():
    class Excluding(Loop):
        def __init__(self):
            super().__init__(nn.Sequential(nn.Linear(WIDTH, WIDTH), blocks(), nn.Linear(WIDTH, 2)))

        def configure_optimizers(self):
            others = [*self.net[0].parameters(), *self.net[2].parameters()]
            groups = [{"params": others, "weight_decay": 0.5}, {"params": list(self.net[1].parameters())}]
            return torch.optim.SGD(groups, 0.0, weight_decay=DECAY)

    module, batch = Excluding(), points()
    want = Passed(module.net[1], lambda: module.training_step(batch, 0)).momenta()
    for layers in ("net.1.*", None):
        readings, _ = read(module, [batch, batch], layers, MOMENTA)
        close(readings["momentum_norm"], want)


def several_weight_decays_and_no_layers_named():
    class Several(Loop):
        def configure_optimizers(self):
            groups = [{"params": list(block.parameters()), "weight_decay": 0.1 * n} for n, block in enumerate(self.net)]
            return torch.optim.SGD(groups, 0.0)

    monitor = EnergyMonitor(None, [*ENERGIES, *MOMENTA], every_n_steps=1)
    said = fit(Several(), [points(), points()], monitor)
    assert set(monitor.readings["train"].quantities) == set(ENERGIES)
    assert len(told(said, "momentum_norm", "weight_decay")) == 1, said
    with pytest.raises(ValueError, match="weight_decay"):
        fit(Several(), [points()], EnergyMonitor("net.*", MOMENTA))


# 17. A path that runs more than once in a step.


def two_views_of_one_batch():
    class Twins(Loop):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(WIDTH, WIDTH)

        def training_step(self, batch, batch_idx):
            one, two = self.net(batch[0]), self.net(batch[1])
            loss = F.cosine_similarity(self.head(one), two.detach()).mean()
            return -loss - 2 * F.cosine_similarity(self.head(two), one.detach()).mean()

    module, batch = Twins(), (points(), points(seed=2))
    passed = Passed(module.net, lambda: module.training_step(batch, 0))
    assert [len(passes) for passes in passed.after] == [2, 2, 2]
    want = {"momentum_norm": passed.momenta(), **passed.energies()}
    for layers in ("net.*", None):
        readings, said = read(module, [batch], layers, list(want))
        close_to(readings, want)
        assert not told(said, "EnergyMonitor", "shared"), said


def views_of_several_sizes():
    class Crops(Loop):
        def training_step(self, batch, batch_idx):
            return sum(self.net(crop).square().mean() for crop in batch)

    module, batch = Crops(), [points(12).reshape(2, 6, WIDTH), points(8, seed=2).reshape(4, 2, WIDTH)]
    passed = Passed(module.net, lambda: module.training_step(batch, 0))
    want = {"momentum_norm": passed.momenta(), **passed.energies()}
    readings, _ = read(module, [batch], "net.*", list(want))
    close_to(readings, want)


def one_block_run_again_and_again():
    class Universal(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.start = blocks(2), Block()

        def forward(self, hidden):
            hidden = self.start(hidden)
            for _ in range(3):
                hidden = self.blocks[0](hidden)
            return self.blocks[1](hidden)

    monitor = EnergyMonitor("net.blocks.*", every_n_steps=1)
    said = fit(Loop(Universal()), [points(), points()], monitor)
    assert "train" not in monitor.readings
    (text,) = told(said, "not read", "net.blocks.0")
    assert "3 times in one step" in text
    assert text.index("times") < text.index("shared weights")


def a_block_called_by_itself_on_other_data():
    class Probed(Loop):
        def training_step(self, batch, batch_idx):
            if batch_idx % 2 == self.first:
                self.probe = self.net[0](points(seed=7)).mean()
            return super().training_step(batch, batch_idx)

    for quantities in (list(ENERGIES), [*ENERGIES, *MOMENTA]):
        for first in (0, 1):
            module, monitor = Probed(), EnergyMonitor("net.*", quantities, every_n_steps=1)
            module.first = first
            said = fit(module, [points(), points(seed=2)][: 1 + first], monitor)
            batch = points(seed=1 + first)
            want = Passed(module.net, lambda batch=batch, module=module: module(batch)).energies()
            if not told(said, "net.0", "times in one step"):  # else the reading is that of the batch before
                close_to(monitor.readings["train"], want)


def an_adapter_beside_two_views():
    def step_sizes(joined):
        torch.manual_seed(0)
        network = LeakyResNet(WIDTH, WIDTH, width=8, num_layers=4, effective_depth=1.0)
        optimizer = torch.optim.SGD(network.parameters(), 0.0)
        StepSizeHook(network, every_n_steps=1).attach(optimizer)
        parts = [torch.cat([points(), points(seed=2)])] if joined else [points(), points(seed=2)]
        sum(network(part).square().mean() for part in parts).backward()
        optimizer.step()
        return network.step_sizes

    close(step_sizes(joined=False), step_sizes(joined=True), 1e-6)


def half_steps_that_hold_no_optimizer():
    class Halves(torch.optim.SGD):
        @torch.no_grad()
        def first_step(self):
            for parameter in self.param_groups[0]["params"]:
                parameter.sub_(0.01 * parameter.grad)

        second_step = first_step

    def attach(network, hook):
        optimizer = Halves(network.parameters(), 0.01)
        hook.attach(optimizer)
        return optimizer

    step_sizes, said = _adapted(attach, partial(_train_sharp, steps=510))
    close(step_sizes, [0.25] * 4)
    assert len(told(said, "Halves", "step()")) == 1, said
