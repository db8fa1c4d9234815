"""Other people's loops: what passes the blocks, and what becomes of it afterwards."""

import functools

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from lightning_leaky import EnergyMonitor, LeakyResNetModule, StepSizeAdapter, StepSizeHook, make_leaky, measure_path
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
    energies,
    fit,
    points,
    read,
    right_or_refused,
    told,
)
from tests.others.loops_structure import Images, timm_model

# 1. Work in a hook that nobody asked for.


def per_sample_gradients_by_vmap():
    class PerSample(ByHand):
        def training_step(self, batch, batch_idx):
            def loss(parameters, x):
                return functional_call(self.net, parameters, (x[None],)).square().mean()

            values = {name: one.detach() for name, one in self.net.named_parameters()}
            for name, gradient in vmap(grad(loss), (None, 0))(values, batch).items():
                self.net.get_parameter(name).grad = gradient.mean(0)
            self.optimizers().step()

    batches = [points(seed=seed) for seed in range(3)]
    for layers in ("net.*", None):
        monitor = EnergyMonitor(layers, every_n_steps=1)
        said = fit(PerSample(), batches, monitor)
        assert "train" not in monitor.readings
        assert len(told(said, "not read")) + len(told(said, "no layers are read")) == 1, said
    leaky = PerSample()
    make_leaky(leaky, "net.*")
    said = fit(leaky, batches, StepSizeAdapter(every_n_steps=1))
    assert len(told(said, "step-sizes left as they are")) == 1, said
    close(leaky.leaky_steps.step_sizes, [1 / 3] * 3)


def gradients_of_samples_beside_the_loss():
    class Beside(Loop):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            values = {name: one.detach() for name, one in self.net.named_parameters()}
            one = grad(lambda parameters, x: functional_call(self.net, parameters, (x[None],)).square().mean())
            self.norms = {name: each.norm() for name, each in vmap(one, (None, 0))(values, batch).items()}
            return loss

    monitor, module, batch = EnergyMonitor("net.*", every_n_steps=1), Beside(), points()
    said = fit(module, [batch], monitor)
    right_or_refused(monitor, said, Passed(module.net, lambda: module(batch)).energies(), "not read", "transform")


def a_directional_derivative_in_the_loss():
    class Smooth(Loop):
        def training_step(self, batch, batch_idx):
            value, slope = jvp(self.net, (batch,), (torch.ones_like(batch),))
            return value.square().mean() + slope.square().mean()

    module, monitor = Smooth(), EnergyMonitor("net.*", every_n_steps=1)
    said = fit(module, [points()], monitor)
    assert "train" not in monitor.readings
    assert len(told(said, "not read", "transform")) == 1, said


def several_gradients_at_once_beside_the_loss():
    class Beside(Loop):
        def training_step(self, batch, batch_idx):
            out = self.net(batch)
            basis = torch.eye(out.numel())[:3].reshape(3, *out.shape)
            parameters = list(self.net.parameters())
            torch.autograd.grad(out, parameters, basis, retain_graph=True, is_grads_batched=True)
            return out.square().mean()

    module, batch = Beside(), points()
    passed = Passed(module.net, lambda: module(batch).square().mean())
    want = {"momentum_norm": passed.momenta(), **passed.energies()}
    monitor = EnergyMonitor("net.*", list(want), every_n_steps=1)
    said = fit(module, [batch, batch], monitor)
    right_or_refused(monitor, said, want, "not read")
    assert len(told(said, "not read")) <= 1, said


def a_float8_cache_beside_the_state():
    class Cached(Block):
        def forward(self, hidden, cache):
            return super().forward(hidden)

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Cached() for _ in range(3))
            self.register_buffer("cache", torch.zeros(12, WIDTH).to(torch.float8_e4m3fn), persistent=False)

        def forward(self, hidden):
            for layer in self.layers:
                hidden = layer(hidden, self.cache)
            return hidden

    module, batch = Loop(Decoder()), points()
    readings, _ = read(module, [batch], "net.layers.*")
    close_to(readings, Passed(module.net.layers, lambda: module(batch)).energies())


def arguments_of_every_odd_kind():
    class Odd(Block):
        def forward(self, hidden, *others, **named):
            return super().forward(hidden), None, (part for part in others)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Odd() for _ in range(3))

        def forward(self, hidden):
            shape = hidden.shape
            turns = torch.polar(torch.ones(shape), torch.zeros(shape))
            edges = torch.eye(len(hidden)).to_sparse()
            whole = torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8)
            for layer in self.layers:
                hidden, *_ = layer(hidden, turns, edges, whole, torch.empty(shape, device="meta"), cache=iter([]))
            return hidden

    module, batch = Loop(Net()), points()
    monitor = EnergyMonitor("net.layers.*", every_n_steps=1)
    said = fit(module, [batch], monitor)
    right_or_refused(monitor, said, Passed(module.net.layers, lambda: module(batch)).energies(), "not read")


def counted_on_fake_tensors_before_training():
    from torch._subclasses.fake_tensor import FakeTensorMode

    class Counting(Loop):
        def training_step(self, batch, batch_idx):
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                self.net(mode.from_tensor(batch))
            return super().training_step(batch, batch_idx)

    module, batch, monitor = Counting(), points(), EnergyMonitor("net.*", every_n_steps=1)
    said = fit(module, [batch], monitor)
    right_or_refused(monitor, said, Passed(module.net, lambda: module(batch)).energies(), "not read")


def traced_by_fx_in_the_middle_of_a_fit():
    class Traced(Loop):
        def training_step(self, batch, batch_idx):
            self.graph = str(torch.fx.symbolic_trace(self.net).graph)
            return super().training_step(batch, batch_idx)

    module, batch, monitor = Traced(), points(), EnergyMonitor("net.*", every_n_steps=1)
    said = fit(module, [batch], monitor)
    right_or_refused(monitor, said, Passed(module.net, lambda: module(batch)).energies(), "not read")


# 2. What was captured changes afterwards.


def in_place_activations_after_the_layers():
    def net(in_place):
        torch.manual_seed(0)
        parts = [part for _ in range(3) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=in_place))]
        return nn.Sequential(*parts)

    batches, plain = [points(), points(seed=2)], Loop(net(in_place=False))
    want = Passed([plain.net[0], plain.net[2], plain.net[4]], lambda: plain(batches[-1])).energies()
    readings, _ = read(Loop(net(in_place=True)), batches, nn.Linear)
    close_to(readings, want)
    measured = measure_path(net(in_place=True), batches[-1:], ENERGIES, layers=nn.Linear)
    close_to(measured, want)


class Timed(nn.Module):
    """Adds an embedding to what each block has returned."""

    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.in_place = blocks(), in_place
        self.time = nn.Parameter(torch.ones(WIDTH))

    def forward(self, hidden):
        for block in self.blocks:
            hidden = block(hidden)
            if self.in_place:
                hidden += self.time
            else:
                hidden = hidden + self.time
        return hidden


def an_embedding_added_in_place_between_blocks():
    batches, plain = [points(), points(seed=2), points(seed=3)], Timed(in_place=False)
    want = Passed(plain.blocks, lambda: plain(batches[-1])).energies()
    readings, said = read(Loop(Timed(in_place=True)), batches, "net.blocks.*")
    close_to(readings, want)
    assert told(said, "not on one path"), said


def in_place_between_compiled_blocks():
    batch, plain = points(), Timed(in_place=False)
    want = Passed(plain.blocks, lambda: plain(batch)).energies()
    compiled = torch.compile(Timed(in_place=True), backend="aot_eager")
    close_to(measure_path(compiled, [batch], ENERGIES, layers="blocks.*"), want)
    readings, _ = read(Loop(compiled), [batch, batch], "net.blocks.*")
    close_to(readings, want)


def a_block_that_adds_into_its_input():
    class InPlace(Block):
        def forward(self, hidden):
            change = self.linear(hidden.clone()).tanh()
            hidden += change
            return hidden

    torch.manual_seed(0)
    start, net = nn.Linear(WIDTH, WIDTH), nn.Sequential(InPlace(), InPlace(), InPlace())
    module, batches = Loop(nn.Sequential(start, net)), [points(), points(seed=2)]
    monitor = EnergyMonitor("net.1.*", every_n_steps=1)
    said = fit(module, batches, monitor)
    plain = blocks()
    plain.load_state_dict(net.state_dict())
    hidden = start(batches[-1]).detach()
    right_or_refused(monitor, said, Passed(plain, lambda: plain(hidden)).energies(), "in place")
    with pytest.raises(ValueError, match="overwrites"):
        make_leaky(nn.Sequential(start, net), "1.*")(batches[0])


def in_place_activations_while_validating():
    class Validating(Loop):
        def validation_step(self, batch, batch_idx):
            self(batch)

    def net(in_place):
        torch.manual_seed(0)
        parts = [part for _ in range(3) for part in (nn.Linear(WIDTH, WIDTH), nn.GELU() if not in_place else InGelu())]
        return nn.Sequential(*parts)

    class InGelu(nn.Module):
        def forward(self, hidden):
            return hidden.copy_(nn.functional.gelu(hidden)) if not hidden.requires_grad else nn.functional.gelu(hidden)

    data, monitor = [points(seed=seed) for seed in (3, 4)], EnergyMonitor(nn.Linear, every_n_steps=1)
    said = fit(Validating(net(in_place=True)), [points()], monitor, validation=data)
    plain = net(in_place=False)
    want = Passed([plain[0], plain[2], plain[4]], lambda: [plain(one) for one in data]).energies()
    assert "validate" in monitor.readings, said
    close_to(monitor.readings["validate"], want)


def writes_that_torch_does_not_count():
    """Through `.data` and through numpy; nothing in torch tells of them but the values."""

    class Clamped(nn.Module):
        def __init__(self, how):
            super().__init__()
            torch.manual_seed(0)
            self.blocks, self.how = blocks(), how

        def forward(self, hidden):
            for block in self.blocks:
                hidden = block(hidden)
                if self.how == "data":
                    hidden.data.clamp_(-0.5, 0.5)
                if self.how == "numpy":
                    values = hidden.detach().numpy()
                    values[...] = values.clip(-0.5, 0.5)
            return hidden

    taken, returned, hidden = [], [], points()
    with torch.no_grad():
        for block in Clamped(None).blocks:
            taken.append(hidden.double())
            returned.append(block(hidden).double())
            hidden = block(hidden).clamp(-0.5, 0.5)
    for how in ("data", "numpy"):
        for number in (1, 3):
            monitor = EnergyMonitor("net.blocks.*", list(ENERGIES), every_n_steps=1)
            said = fit(Loop(Clamped(how)), [points()] * number, monitor)
            right_or_refused(monitor, said, energies(taken, returned), "place")


def outputs_in_one_buffer():
    class Buffered(Block):
        def __init__(self, buffer):
            super().__init__()
            self.buffer = [buffer]

        def forward(self, hidden):
            if torch.is_grad_enabled():
                return super().forward(hidden)
            return torch.add(hidden, self.linear(hidden).tanh(), out=self.buffer[0])

    class Validating(Loop):
        def validation_step(self, batch, batch_idx):
            self(batch)

    buffer = torch.zeros(12, WIDTH)
    net, plain = nn.Sequential(*(Buffered(buffer) for _ in range(3))), blocks()
    plain.load_state_dict(net.state_dict())
    data, monitor = [points(seed=seed) for seed in (3, 4, 5)], EnergyMonitor("net.*", list(ENERGIES), every_n_steps=1)
    want = Passed(plain, lambda: [plain(one) for one in data]).energies()
    fit(Validating(net), [points()], monitor, validation=data)
    close_to(monitor.readings["validate"], want)
    close_to(measure_path(net, data, ENERGIES, layers="*"), want)


# 8. Reading has no side effects.


def _losses(change, *callbacks):
    torch.manual_seed(0)
    module = LeakyResNetModule(WIDTH, WIDTH, width=8, num_layers=4, effective_depth=2.0, weight_decay=0.1)
    for layer in module.network.layers:
        change(layer)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    seen = []
    module.on_train_batch_end = lambda outputs, batch, batch_idx: seen.append(outputs["loss"].clone())
    said = fit(module, [(points(seed=seed), points(seed=9)) for seed in range(4)], *callbacks, max_epochs=3)
    return torch.stack(seen), {name: value.clone() for name, value in module.state_dict().items()}, said


def spectral_norm_of_a_leaky_network():
    for change in (
        parametrizations.spectral_norm,
        functools.partial(parametrizations.spectral_norm, n_power_iterations=3),
    ):
        without, state, _ = _losses(change)
        monitor = EnergyMonitor(every_n_steps=1)
        losses, other, _ = _losses(change, monitor)
        assert "hamiltonian" in monitor.readings["train"].quantities
        assert torch.equal(losses, without)
        assert all(torch.equal(value, other[name]) for name, value in state.items())


def weight_norm_and_orthogonal_maps():
    for change in (parametrizations.weight_norm, parametrizations.orthogonal):
        without, state, _ = _losses(change)
        losses, other, _ = _losses(change, EnergyMonitor(every_n_steps=1), StepSizeAdapter(start_step=100))
        assert torch.equal(losses, without)
        assert all(torch.equal(value, other[name]) for name, value in state.items())


def measured_in_training_mode_with_spectral_norm():
    class Normed(Block):
        def __init__(self):
            super().__init__()
            parametrizations.spectral_norm(self.linear)

    torch.manual_seed(0)
    net = nn.Sequential(Normed(), nn.Dropout(0.5), Normed(), Normed()).train()
    net[2].eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    batch = (points(), torch.randint(WIDTH, (12,), generator=torch.Generator().manual_seed(0)))
    readings = measure_path(net, [batch], [*ENERGIES, "momentum_norm"], nn.functional.cross_entropy, 0.1, layers=Normed)
    assert readings.is_finite()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert [part.training for part in net] == [True, True, False, True]
    assert all(parameter.grad is None for parameter in net.parameters())


def lazy_layers_that_a_first_batch_makes():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.LazyLinear(WIDTH)

        def forward(self, hidden):
            return hidden + self.linear(hidden).tanh()

    class Late(Loop):
        def configure_optimizers(self):
            return torch.optim.SGD(list(self.net[0].parameters()), 0.0)

    batch = points()
    for layers in ("net.1.*", None):
        torch.manual_seed(0)
        module = Late(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Sequential(Lazy(), Lazy(), Lazy())))
        monitor = EnergyMonitor(layers, list(ENERGIES), every_n_steps=1)
        said = fit(module, [batch, batch], monitor)
        assert "train" in monitor.readings, said
        close_to(monitor.readings["train"], Passed(module.net[1], lambda module=module: module(batch)).energies())


# 9. A recomputed forward pass is no second pass.


class Checkpointed(nn.Module):
    """Blocks that are checkpointed, or not."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.start, self.blocks, self.how = nn.Linear(WIDTH, WIDTH), blocks(4), how

    def forward(self, hidden):
        hidden = self.start(hidden)
        for block in self.blocks:
            hidden = block(hidden) if self.how is None else checkpoint(block, hidden, use_reentrant=self.how)
        return hidden


def checkpointing_and_the_momenta_of_a_cost():
    batches = [(points(seed=seed), torch.randint(WIDTH, (12,))) for seed in (1, 2)]
    asked = ([*ENERGIES, "momentum_norm", "hamiltonian"], nn.functional.cross_entropy, 0.1)
    want = measure_path(Checkpointed(None), batches, *asked, layers="blocks.*")
    for how in (False, True):
        close_to(measure_path(Checkpointed(how), batches, *asked, layers="blocks.*"), want.quantities)


def checkpointing_and_a_backward_of_ones_own():
    class Own(ByHand):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self(batch).square().mean().backward()
            optimizer.step()

    batch, plain = points(), Checkpointed(None)
    passed = Passed(plain.blocks, lambda: plain(batch).square().mean())
    want = {"momentum_norm": passed.momenta(), **passed.energies()}
    for how in (False, True):
        for layers in ("net.blocks.*", None):
            readings, _ = read(Own(Checkpointed(how)), [batch, batch], layers, list(want))
            close_to(readings, want)


def checkpointing_of_groups_of_blocks():
    class Grouped(Checkpointed):
        def forward(self, hidden):
            hidden = self.start(hidden)
            if self.how[0]:
                return checkpoint(self.blocks, hidden, use_reentrant=self.how[1])
            return checkpoint_sequential(self.blocks, 2, hidden, use_reentrant=self.how[1])

    batch, plain = points(), Checkpointed(None)
    passed = Passed(plain.blocks, lambda: plain(batch).square().mean())
    want = {"momentum_norm": passed.momenta(), **passed.energies()}
    for how in ((False, False), (False, True), (True, False), (True, True)):
        for layers in ("net.blocks.*", None):
            readings, _ = read(Loop(Grouped(how)), [batch, batch], layers, list(want))
            close_to(readings, want)


def checkpointing_inside_of_each_block():
    class Inside(Block):
        how = None

        def forward(self, hidden):
            if self.how is None:
                return super().forward(hidden)
            return hidden + checkpoint(self.linear, hidden, use_reentrant=self.how).tanh()

    def net(how):
        torch.manual_seed(0)
        inside = [Inside() for _ in range(3)]
        for block in inside:
            block.how = how
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Sequential(*inside))

    batch, plain, weight_decay = points(), net(None), objective_weight_decay(DECAY, 3, 0.0)
    passed = Passed(plain[1], lambda: plain(batch).square().mean())
    want = {"momentum_norm": passed.momenta(), **passed.energies()}
    for how in (None, False, True):
        readings, _ = read(Loop(net(how)), [batch, batch], "net.1.*", list(want))
        close_to(readings, want)
        cost = lambda outputs, targets: outputs.square().mean()  # noqa: E731
        close_to(measure_path(net(how), [(batch, batch)], list(want), cost, weight_decay, layers="1.*"), want)


def checkpointing_that_transformers_switches_on():
    from transformers import GPT2Config, GPT2LMHeadModel

    class Language(Loop):
        def training_step(self, batch, batch_idx):
            return self.net(input_ids=batch, labels=batch).loss

    def net():
        torch.manual_seed(0)
        none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=3, n_head=2, initializer_range=0.2, **none)
        )

    batch = torch.randint(20, (3, 8), generator=torch.Generator().manual_seed(0))
    asked, want = [*ENERGIES, "momentum_norm"], None
    for arguments in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        module = Language(net())
        if arguments is None:
            passed = Passed(module.net.transformer.h, lambda: module.training_step(batch, 0))  # noqa: B023
            want = {"momentum_norm": passed.momenta(), **passed.energies()}
        else:
            module.net.gradient_checkpointing_enable(arguments)
        module.net.train()
        readings, said = read(module, [batch], "net.transformer.h.*", asked)
        close_to(readings, want)
        assert not told(said, "shared weights"), said


def vit_of_timm_with_its_own_checkpointing():
    asked, want = [*ENERGIES, "momentum_norm"], None
    batch = points(2 * 3 * 8, 8).reshape(2, 3, 8, 8)
    for checkpoints in (False, True):
        sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 3, "num_heads": 2}
        module = Images(timm_model("vit_tiny_patch16_224", **sizes))
        if not checkpoints:
            passed = Passed(module.net.blocks, lambda module=module: module.training_step(batch, 0))
            want = {"momentum_norm": passed.momenta(), **passed.energies()}
        module.net.set_grad_checkpointing(checkpoints)
        for layers in ("net.blocks.*", None):
            readings, said = read(module, [batch, batch], layers, asked)
            assert len(readings.names) == 3
            close_to(readings, want)
            assert not told(said, "shared weights"), said


def checkpointing_and_adaptive_step_sizes():
    adapted = []
    for how in (None, False, True):
        net = Checkpointed(how)
        make_leaky(net, "blocks.*")
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        StepSizeHook(net, every_n_steps=1).attach(optimizer)
        for seed in range(3):
            optimizer.zero_grad()
            net(points(seed=seed)).square().mean().backward()
            optimizer.step()
        adapted.append(net.leaky_steps.step_sizes)
    assert float((adapted[0] - 1 / 4).abs().max()) > 1e-4
    close(adapted[1], adapted[0], 1e-6)
    close(adapted[2], adapted[0], 1e-6)
