"""Other people's loops: leaky models inside of what others wrap around them, copy, trace and write down."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from lightning_leaky import (
    EnergyMonitor,
    LeakyResNet,
    StepSizeAdapter,
    StepSizeHook,
    make_leaky,
    measure_path,
    unmake_leaky,
)
from tests.others.loops import (
    ENERGIES,
    WIDTH,
    Block,
    Loop,
    Passed,
    blocks,
    close,
    close_to,
    fit,
    points,
    read,
    set_steps,
    sgd,
    told,
    unless_refused,
)
from tests.others.loops_state import STEPS, leaky_by_hand

# 10. Wrappers that forward attributes.


def _lora(model, **settings):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, target_modules=["linear"], **settings))


class Net(nn.Module):
    """Something around blocks, that takes a batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.start, self.blocks = nn.Linear(WIDTH, WIDTH), blocks(4)

    def forward(self, batch):
        return self.blocks(self.start(batch))


def lora_on_a_leaky_model_and_back():
    batch = points()
    for around in (False, True):
        model = Net() if around else make_leaky(Net(), "blocks.*")
        model = _lora(model)
        if around:
            make_leaky(model, "blocks.*")
        inner = model.base_model.model
        close(model(batch), Net()(batch))
        inner.leaky_steps.step_sizes.copy_(torch.tensor(STEPS))
        adapted, keys = model(batch).detach(), list(inner.state_dict())
        close(adapted, leaky_by_hand(Net().blocks, Net().start(batch), STEPS))
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        StepSizeHook(model, every_n_steps=1).attach(optimizer)
        model(batch).square().mean().backward()
        optimizer.step()
        assert not torch.allclose(inner.leaky_steps.step_sizes, torch.tensor(STEPS).to(inner.leaky_steps.step_sizes))
        assert "leaky_steps.step_sizes" in keys
        before = {name: value.clone() for name, value in inner.state_dict().items()}
        outputs = model(batch).detach()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                unmake_leaky(model)
            except ValueError:
                close(model(batch), outputs)
                assert list(inner.state_dict()) == list(before)
                continue
        assert not [key for key in inner.state_dict() if "step" in key]
        same = all(torch.equal(value, before[key]) for key, value in inner.state_dict().items())
        dropped = told([str(one.message) for one in caught], "cannot be folded")
        assert same == bool(dropped), "weights have changed, and not to what the leaky model computed"
        if not dropped:
            close(model(batch), outputs)


def lora_merged_into_a_leaky_model():
    batch, model = points(), make_leaky(Net(), "blocks.*")
    set_steps(model, STEPS)
    want = leaky_by_hand(Net().blocks, Net().start(batch), STEPS)
    tuned = _lora(model, init_lora_weights=False)
    assert not torch.allclose(tuned(batch), want)
    outputs = tuned(batch).detach()
    merged = tuned.merge_and_unload()
    close(merged(batch), outputs)
    close(measure_path(merged, [batch], ENERGIES).step_sizes, STEPS)
    close(_lora(merged)(batch), outputs)


def a_model_that_accelerate_has_prepared():
    from accelerate import Accelerator

    batch, net = points(), Net()
    accelerator = Accelerator(cpu=True)
    want = measure_path(net, [batch], ENERGIES, layers="blocks.*")
    make_leaky(net, "blocks.*")
    model, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), 0.05))
    close_to(measure_path(model, [batch], ENERGIES), want.quantities)
    StepSizeHook(model, every_n_steps=1).attach(optimizer)
    accelerator.backward(model(batch).square().mean())
    optimizer.step()
    assert float((net.leaky_steps.step_sizes - 0.25).abs().max()) > 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unmake_leaky(model)
    assert not hasattr(net, "leaky_steps")


def lora_of_transformers_beside_a_monitor():
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.2, "pad_token_id": 0}
    net = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    net = get_peft_model(net, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    real = torch.arange(6) < torch.tensor([6, 3, 4])[:, None]
    ids = torch.randint(1, 20, (3, 6), generator=torch.Generator().manual_seed(0)).masked_fill(~real, 0)
    batch = {"input_ids": ids, "attention_mask": real.long(), "labels": ids.masked_fill(~real, -100)}

    class Tuning(Loop):
        def training_step(self, batch, batch_idx):
            return self.net(**batch).loss

        def configure_optimizers(self):
            trained = [one for one in self.parameters() if one.requires_grad]
            return torch.optim.SGD(trained, 0.0, weight_decay=0.02)

    module = Tuning(net)
    passed = Passed(net.base_model.model.model.layers, lambda: module.training_step(batch, 0))
    gradients = torch.autograd.grad(passed.result, [passes[0] for passes in passed.after])
    momenta = [float(gradient[real].double().norm()) / 0.1 for gradient in gradients]
    want = passed.energies(lambda hidden: hidden[real])
    names = tuple(f"net.model.layers.{index}" for index in range(3))
    for layers in ("net.model.layers.*", None):
        readings, _ = read(module, [batch, batch], layers)
        assert readings.names == names
        close_to(readings, want)
    readings, _ = read(module, [batch], "net.model.layers.*", ["momentum_norm"], weight_decay=0.1)
    close(readings["momentum_norm"], momenta)
    monitor = EnergyMonitor("net.model.layers.*", ["momentum_norm"], every_n_steps=1)
    if unless_refused(lambda: fit(module, [batch], monitor), "weight_decay") is not None:
        close(monitor.readings["train"]["momentum_norm"], [one * 0.1 / (0.02 / 3) for one in momenta])


def names_through_compiled_averaged_and_parallel_models():
    batch, want = points(), None
    wrappers = {
        "nothing": lambda net: net,
        "torch.compile": lambda net: torch.compile(net, backend="eager"),
        "AveragedModel": AveragedModel,
        "DataParallel": nn.DataParallel,
        "Fabric": Fabric(accelerator="cpu", devices=1).setup,
        "an average of parallel models": lambda net: AveragedModel(nn.DataParallel(net)),
    }
    for name, wrap in wrappers.items():
        model = wrap(Net())
        measured = measure_path(model, [batch], ENERGIES, layers="blocks.*")
        assert measured.names == tuple(f"blocks.{index}" for index in range(4)), name
        want = measured if want is None else want
        close_to(measured, want.quantities)
        close_to(measure_path(model, [batch], ENERGIES), want.quantities)
        make_leaky(model, "blocks.*")
        path = next(one for one in model.modules() if hasattr(one, "leaky_steps")).leaky_steps
        path.step_sizes.copy_(torch.tensor(STEPS))
        close(model(batch), leaky_by_hand(Net().blocks, Net().start(batch), STEPS))
        assert measure_path(model, [batch], ENERGIES).step_sizes.tolist() == pytest.approx(STEPS)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        StepSizeHook(model, every_n_steps=1).attach(optimizer)
        model.train()
        for _ in range(2):
            model(batch).square().mean().backward()
            optimizer.step()
        assert not torch.allclose(path.step_sizes, torch.tensor(STEPS).to(path.step_sizes)), name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            unmake_leaky(model)
        assert not [key for key in model.state_dict() if "step_sizes" in key], name


def a_wrapper_nobody_knows():
    """It forwards attributes to a model inside, as many do: works, or is refused and stays as it was."""

    class Forwarding(nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.inside = inside

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.inside, name)

        def forward(self, *args):
            return self.inside(*args)

    batch = points()
    model = Forwarding(make_leaky(Net(), "blocks.*"))
    set_steps(model, STEPS)
    state, outputs = {key: value.clone() for key, value in model.state_dict().items()}, model(batch).detach()
    close(measure_path(model, [batch], ENERGIES).step_sizes, STEPS)
    monitor = EnergyMonitor(quantities=list(ENERGIES), every_n_steps=1)
    fit(Loop(model), [batch], monitor, StepSizeAdapter(start_step=100))
    close(monitor.readings["train"].step_sizes, STEPS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            unmake_leaky(model)
        except ValueError:
            assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
            close(model(batch), outputs)
        else:
            assert not [key for key in model.state_dict() if "step_sizes" in key]
            dropped = told([str(one.message) for one in caught], "cannot be folded")
            close(model(batch), Net()(batch) if dropped else outputs)
    with pytest.raises(ValueError, match="layers"):
        make_leaky(Forwarding(Net()), "nothing.*")


def residual_blocks_of_somebody_elses_model():
    """Undone where steps are equal, or where each block ends with a map: the outputs stay."""

    class Last(Block):
        def forward(self, hidden):
            return hidden + self.linear(hidden.tanh())

    batch = points()
    for kind, is_exact in ((Last, True), (Block, False)):
        torch.manual_seed(0)
        model = make_leaky(nn.Sequential(kind(), kind(), kind(), kind()), "*")
        set_steps(model, STEPS)
        leaky, weights = model(batch).detach(), copy.deepcopy(model.state_dict())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            unmake_leaky(model)
        assert bool(told([str(one.message) for one in caught], "cannot be folded")) != is_exact
        if is_exact:
            close(model(batch), leaky)
        else:
            assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
        assert not [key for key in model.state_dict() if "step_sizes" in key]


# 11. State that hooks carry.


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.online = Net()

    def forward(self, batch):
        return self.online(batch)


def a_target_encoder_copied_from_a_leaky_model():
    batch, original = points(), Net()
    leaky = leaky_by_hand(original.blocks, original.start(batch), STEPS)
    whole = make_leaky(Encoder(), "online.blocks.*")
    set_steps(whole, STEPS)
    close(copy.deepcopy(whole)(batch), leaky)
    close(pickle.loads(pickle.dumps(whole))(batch), leaky)
    part = copy.deepcopy(whole.online)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outputs = [part(batch), part(batch)]
    is_plain = torch.allclose(outputs[0], original(batch), rtol=1e-5)
    assert is_plain or torch.allclose(outputs[0], leaky, rtol=1e-5)
    assert not is_plain or len(told([str(one.message) for one in caught], "step-sizes")) == 1
    make_leaky(part, "blocks.*")
    set_steps(part, STEPS[::-1])
    close(part(batch), leaky_by_hand(original.blocks, original.start(batch), STEPS[::-1]))
    close(whole(batch), leaky)  # the original knows nothing of it


def a_part_that_is_saved_whole():
    batch, model = points(), make_leaky(nn.Sequential(Net(), nn.Linear(WIDTH, 2)), "0.blocks.*")
    set_steps(model, STEPS)
    file = io.BytesIO()
    torch.save(model[0], file)
    file.seek(0)
    part = torch.load(file, weights_only=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outputs = part(batch)
    if not torch.allclose(outputs, model[0](batch), rtol=1e-5):
        close(outputs, Net()(batch))
        assert len(told([str(one.message) for one in caught], "step-sizes")) == 1


def a_leaky_model_called_with_other_weights():
    batch, model = points(), make_leaky(Net(), "blocks.*")
    set_steps(model, STEPS)
    torch.manual_seed(5)
    other = {name: torch.randn_like(one) for name, one in model.named_parameters()}
    plain = Net()
    plain.load_state_dict(other)
    close(functional_call(model, other, (batch,)), leaky_by_hand(plain.blocks, plain.start(batch), STEPS))
    close(model(batch), leaky_by_hand(Net().blocks, Net().start(batch), STEPS))


def a_leaky_model_that_is_exported_or_traced():
    batch, model = points(), make_leaky(Net(), "blocks.*")
    set_steps(model, STEPS)
    want = leaky_by_hand(Net().blocks, Net().start(batch), STEPS)
    close(torch.export.export(model, (batch,)).module()(batch), want)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close(torch.jit.trace(model, (batch,))(batch), want)
    traced = unless_refused(lambda: torch.fx.symbolic_trace(model), "fx")
    if traced is not None:
        close(traced(batch), want)
    close(model(batch), want)


def a_leaky_model_that_is_quantised():
    batch, model = points(), make_leaky(Net().eval(), "blocks.*")
    set_steps(model, STEPS)
    want = leaky_by_hand(Net().blocks, Net().start(batch), STEPS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        outputs = quantised(batch)
    if float((outputs - want).abs().max()) > 0.1:
        assert told([str(one.message) for one in caught], "step-sizes")
    close(model(batch), want)


# 12. Two paths in one module.


class Teachers(Loop):
    """Two leaky networks; both may be trained."""

    def __init__(self, freezes=True, is_held=True):
        super().__init__(nn.Identity())
        self.student = LeakyResNet(WIDTH, WIDTH, width=8, num_layers=4, effective_depth=1.0)
        self.teacher = LeakyResNet(WIDTH, WIDTH, width=8, num_layers=6, effective_depth=1.0)
        self.teacher.requires_grad_(not freezes)
        self.is_held = is_held

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            target = self.teacher(batch)
        return (self.student(batch) - target - 1).square().mean()

    def configure_optimizers(self):
        return sgd(self.student, *([self.teacher] if self.is_held else []), lr=0.01)


def _moved(network):
    equal = torch.full_like(network.step_sizes, 1 / len(network.step_sizes))
    return not torch.allclose(network.step_sizes, equal, rtol=1e-4)


def a_student_and_a_teacher_that_are_both_leaky():
    data = [points(seed=seed) for seed in range(10)]
    for module in (Teachers(), Teachers(freezes=False, is_held=False)):
        monitor = EnergyMonitor(quantities=list(ENERGIES), every_n_steps=1)
        fit(module, data, StepSizeAdapter(every_n_steps=1), monitor)
        assert _moved(module.student)
        assert not _moved(module.teacher)
        assert len(monitor.readings["train"].names) == 4
    for path in ("teacher", "t*r"):
        module = Teachers()
        module.teacher.train()
        fit(module, data, StepSizeAdapter(every_n_steps=1, path=path))
        assert _moved(module.teacher)
        assert not _moved(module.student)


def two_leaky_networks_that_are_both_trained():
    data = [points(seed=seed) for seed in range(3)]
    with pytest.raises(ValueError, match="student") as error:
        fit(Teachers(freezes=False), data, StepSizeAdapter(every_n_steps=1))
    assert "teacher" in str(error.value)
    assert "path" in str(error.value)
    module = Teachers(freezes=False)
    fit(module, data, StepSizeAdapter(every_n_steps=1, path="student"))
    assert _moved(module.student)
    hook = StepSizeHook(module, every_n_steps=1, path=module.teacher)
    assert hook.path is module.teacher
    with pytest.raises(ValueError, match="nobody"):
        StepSizeHook(module, path="nobody")
    with pytest.raises(ValueError, match="layers"):
        fit(Teachers(freezes=False), data, EnergyMonitor(quantities=list(ENERGIES)))
    readings, _ = read(Teachers(freezes=False), data, "student.layers.*")
    assert len(readings.names) == 4
