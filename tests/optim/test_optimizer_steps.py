"""Steps of optimizers in other optimizers, and steps that nobody hears of: each counts once, or somebody says so."""

import warnings
from collections import defaultdict
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn

from lightning_leaky import RefinementHook, StepSizeHook
from lightning_leaky.functional import adaptive_step_sizes, relative_distances
from lightning_leaky.utilities import optimizer_steps


class SAM(torch.optim.Optimizer):
    """Climbs, then steps from where it was with the gradient of up there: two passes a step."""

    def __init__(self, parameters, **settings):
        super().__init__(parameters, settings)
        self.base_optimizer = torch.optim.SGD(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    def parameters(self):
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def first_step(self):
        for parameter in self.parameters():
            self.state[parameter]["before"] = parameter.clone()
            parameter += 0.05 * parameter.grad.sign()

    @torch.no_grad()
    def second_step(self):
        for parameter in self.parameters():
            parameter.copy_(self.state[parameter]["before"])
        self.base_optimizer.step()

    def step(self, closure):
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


class Lookahead(torch.optim.Optimizer):
    """Without `super().__init__()`, as such wrappers are."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups, self.state = optimizer, optimizer.param_groups, defaultdict(dict)

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Held:
    """No optimizer by its class."""

    def __init__(self, optimizer):
        self._optim, self.history = optimizer, []

    def step(self):
        self._optim.step()


class Sharded(torch.optim.Optimizer):
    """Leaves some of its parameters to another, as one that shares them out over processes."""

    def __init__(self, parameters, **settings):
        super().__init__(parameters, settings)
        self.parts = [torch.optim.SGD([one], **settings) for one in self.param_groups[0]["params"]]
        self.optim = self.parts[0]

    def step(self, closure=None):
        for part in self.parts:
            part.step()


class Subclass(torch.optim.SGD):
    """Torch calls its hooks once for each `step` on the way, once there has been an SGD."""

    def step(self, closure=None):
        return super().step(closure)


def sgd(network):
    return torch.optim.SGD(network.parameters(), lr=1e-2)


def scheduled(network):
    optimizer = sgd(network)
    torch.optim.lr_scheduler.StepLR(optimizer, 10)  # writes another `step` on the object
    return optimizer


def lightning(network):
    wrapped = LightningOptimizer(sgd(network))
    wrapped.step = wrapped._optimizer.step  # what a trainer's strategy comes down to
    return wrapped


def fabric(network):
    return Fabric(accelerator="cpu", devices=1).setup_optimizers(sgd(network))


def accelerated(network):
    return pytest.importorskip("accelerate").Accelerator(cpu=True).prepare(sgd(network))


def timm_lookahead(network):
    """By its file: the package itself wants torchvision."""
    timm = find_spec("timm")
    if timm is None:
        pytest.skip("timm is not installed")
    file = Path(timm.origin).parent / "optim" / "lookahead.py"
    spec = spec_from_file_location("lookahead", file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Lookahead(sgd(network))


OPTIMIZERS = {
    "plain": sgd,
    "scheduled": scheduled,
    "Lookahead": lambda network: Lookahead(sgd(network)),
    "Lookahead of Lookahead": lambda network: Lookahead(Lookahead(sgd(network))),
    "an object that holds one": lambda network: Held(sgd(network)),
    "one that shares out its parameters": lambda network: Sharded(network.parameters(), lr=1e-2),
    "subclass": lambda network: Subclass(network.parameters(), lr=1e-2),
    "Lightning": lightning,
    "Fabric": fabric,
    "accelerate": accelerated,
    "timm": timm_lookahead,
}


def backward(network, inputs):
    network.zero_grad()
    network(inputs).square().mean().backward()


def messages(caught):
    return [str(one.message) for one in caught if "optimizer" in str(one.message)]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_each_step_counts_once(make_network, make):
    """And moves the step-sizes as that of a plain optimizer does."""
    network, plain = make_network(), make_network()
    optimizer, plain_optimizer = make(network), sgd(plain)
    hook = StepSizeHook(network, every_n_steps=2, damping=0.3).attach(optimizer)
    StepSizeHook(plain, every_n_steps=2, damping=0.3).attach(plain_optimizer)
    for inputs in torch.randn(5, 7, 3):
        for one, its_optimizer in ((network, optimizer), (plain, plain_optimizer)):
            backward(one, inputs)
            its_optimizer.step()
    assert hook.num_steps == 5
    assert torch.equal(network.step_sizes, plain.step_sizes)
    assert float(network.step_sizes.std()) > 1e-3
    hook.detach()
    optimizer.step()
    assert hook.num_steps == 5


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"one that shares out its parameters"}))
def test_layers_are_refined_in_it(make_network, name):
    network = make_network()
    optimizer = OPTIMIZERS[name](network)
    RefinementHook(network, tolerance=1e-3, every_n_steps=1, start_step=2, max_layers=24).attach(optimizer)
    for inputs in torch.randn(3, 7, 3):
        backward(network, inputs)
        optimizer.step()
    assert len(network.layers) == 16
    held = {
        id(parameter)
        for group in optimizer_steps.heard_optimizer(optimizer).param_groups
        for parameter in group["params"]
    }
    assert held == set(map(id, network.parameters()))


@pytest.mark.parametrize("halves", [True, False])
def test_two_passes_of_sam_are_one_step(make_network, halves):
    """Called half by half, or with a closure; distances are of the samples of both passes, one set of weights each."""
    network, inputs, paths = make_network(), torch.randn(7, 3), []
    network.layers[0].register_forward_pre_hook(lambda *args: paths.append([]) if len(paths) < 2 else None)
    for layer in network.layers:
        layer.register_forward_hook(lambda layer, args, output: paths[-1].append((args[0], output)))
    optimizer = SAM(network.parameters(), lr=1e-2)
    hook = StepSizeHook(network, every_n_steps=1, damping=1.0, max_leak=None).attach(optimizer)
    before = network.step_sizes.clone()
    backward(network, inputs)
    if halves:
        optimizer.first_step()
        backward(network, inputs)
        optimizer.second_step()
    else:
        optimizer.step(lambda: backward(network, inputs))
    assert hook.num_steps == 1
    first, second = (torch.stack([path[0][0], *(after for _, after in path)]).detach() for path in paths)
    assert not torch.equal(first, second)
    distances = relative_distances(torch.cat([first, second], dim=1), before)
    torch.testing.assert_close(hook.state_dict()["step_sizes"], adaptive_step_sizes(before, distances))


class Deaf:
    """Moves weights by itself."""

    def step(self):
        pass


class Unprepared(torch.optim.Optimizer):
    def __init__(self):
        self.param_groups = []

    def step(self, closure=None):
        pass


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: Deaf(),
        lambda optimizer: Unprepared(),
        lambda optimizer: Lookahead(Unprepared()),
        lambda optimizer: [optimizer],
        lambda optimizer: "SGD",
        lambda optimizer: None,
    ],
    ids=["no optimizer", "without super().__init__()", "around such a one", "list", "name", "None"],
)
@pytest.mark.parametrize("cls", [StepSizeHook, lambda network: RefinementHook(network, tolerance=0.1)])
def test_what_no_hook_hears_is_refused_and_nothing_is_attached(make_network, hooks_of, cls, make):
    network = make_network()
    hook = cls(network)
    with pytest.raises(ValueError, match=r"`optimizer` must be a torch.optim.Optimizer.* Attach to"):
        hook.attach(make(sgd(network)))
    assert (hook.is_attached, hooks_of(network)) == (False, 0)


def test_an_optimizer_of_another_path_is_refused(make_network):
    model = nn.ModuleDict({"one": make_network(), "other": make_network().requires_grad_(False)})
    hook = StepSizeHook(model)
    model["other"].requires_grad_(True)
    with pytest.raises(ValueError, match="`optimizer` must train the layers whose step-sizes are adapted"):
        hook.attach(sgd(model["other"]))
    assert StepSizeHook(model, path="other").attach(sgd(model["one"])).path is model["other"]  # said so


# Many passes and no step.


class TwoHalves(torch.optim.SGD):
    """Moves the weights twice, and never by `step`."""

    def first_step(self):
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter -= 0.01 * parameter.grad

    second_step = first_step


@pytest.mark.parametrize("make_hook", [StepSizeHook, lambda network: RefinementHook(network, tolerance=0.1)])
def test_many_passes_without_a_step_are_said_once_a_fit(make_network, monkeypatch, make_hook):
    monkeypatch.setattr(optimizer_steps, "_MANY_PASSES", 10)
    network = make_network()
    optimizer = TwoHalves(network.parameters(), lr=1e-2)
    hook = make_hook(network)
    for _ in range(2):
        hook.attach(optimizer)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for _ in range(15):
                for half in (optimizer.first_step, optimizer.second_step):
                    backward(network, torch.randn(7, 3))
                    half()
        (told,) = messages(caught)
        assert "10 forward passes" in told
        assert "TwoHalves" in told
        hook.detach()


def test_evaluation_and_passes_before_the_last_step_do_not_count(make_network, monkeypatch):
    monkeypatch.setattr(optimizer_steps, "_MANY_PASSES", 10)
    network = make_network()
    optimizer = sgd(network)
    StepSizeHook(network, every_n_steps=1).attach(optimizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            network.eval()
            [network(torch.randn(7, 3)) for _ in range(12)]
            network.train()
            for _ in range(9):
                backward(network, torch.randn(7, 3))
            optimizer.step()
    assert messages(caught) == []


def test_a_few_hundred_micro_batches_are_nothing_to_speak_of(make_network):
    network = make_network()
    optimizer = sgd(network)
    hook = StepSizeHook(network, every_n_steps=1).attach(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(700):
            network(torch.randn(2, 3)).square().mean().backward()
        optimizer.step()
    assert hook.num_steps == 1


def test_all_passes_of_lbfgs_since_its_last_step_count_as_one_step(make_network):
    network = make_network()
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=5)
    hook = StepSizeHook(network, every_n_steps=1).attach(optimizer)
    inputs, runs = torch.randn(7, 3), []

    def closure():
        backward(network, inputs)
        runs.append(1)
        return network(inputs).square().mean()

    optimizer.step(closure)
    assert len(runs) > 1
    assert hook.num_steps == 1
    assert float(network.step_sizes.std()) > 1e-4
