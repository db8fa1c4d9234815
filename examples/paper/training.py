"""Trained Leaky ResNets of the studies: teachers of known rank, full batches, Adam with half a cosine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from lightning_leaky import LeakyResNet, StepSizeHook, TeacherDataModule, irregular_step_sizes
from lightning_leaky.functional import RULES, criticality_residual, hamiltonian, velocity
from lightning_leaky.module import default_learning_rate

Data = dict[str, tuple[Tensor, Tensor]]
"""Inputs and targets of ``train``, ``val`` and ``test``."""


@dataclass(frozen=True)
class Setting:
    """One training run on a teacher (arXiv 2405.17573, sections 1.2 and 4, Fig. 1 and 2).

    Args:
        seed: Seed of teacher, points and starting weights.
        effective_depth: L̃.
        num_layers: L.
        weight_decay: λ, with the cost summed over outputs.
        dims: Dimensions along the teacher's chain.
        teacher: Kind of its links.
        scheme: ``"equidistant"``, ``"irregular"``, or a rule of `StepSizeHook`.
        unevenness: a of the irregular scheme.
        num_steps: Full-batch steps of Adam.
        every_n_steps: Steps between two adaptations.
        damping: How far each goes.
        max_leak: Bound on ρ_l L̃; 0 for none.
        num_points: Points of each split.
        width: w.
        optimizer: ``"adam"`` or ``"sgd"``, with a momentum of 0.9.
        learning_rate: At the start; 0 for `default_learning_rate`, which is Adam's.
        move_weights: As of `StepSizeHook`.
        scale_gradients: As of `StepSizeHook`.
    """

    seed: int
    effective_depth: float
    num_layers: int
    weight_decay: float
    dims: str = "30-3-30"
    teacher: str = "fully_connected"
    scheme: str = "equidistant"
    unevenness: float = 0.9
    num_steps: int = 6000
    every_n_steps: int = 10
    damping: float = 0.1
    max_leak: float = 0.0
    num_points: int = 1000
    width: int = 100
    optimizer: str = "adam"
    learning_rate: float = 0.0
    move_weights: bool = False
    scale_gradients: bool = False


def data_of(setting: Setting) -> Data:
    """Points of a setting's teacher."""
    dims = tuple(int(size) for size in setting.dims.split("-"))
    sizes = dict.fromkeys(("num_train", "num_val", "num_test"), setting.num_points)
    data = TeacherDataModule(dims, setting.teacher, **sizes, seed=setting.seed)  # type: ignore[arg-type]
    data.setup()
    loaders = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
    return {split: next(iter(loader)) for split, loader in loaders.items()}


def cost(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error, summed over outputs and averaged over samples (section 1.1)."""
    return (outputs - targets).square().sum(-1).mean()


def network_of(setting: Setting) -> LeakyResNet:
    """The network before training."""
    torch.manual_seed(setting.seed)
    dims = setting.dims.split("-")
    network = LeakyResNet(
        int(dims[0]), int(dims[-1]), setting.width, setting.num_layers, effective_depth=setting.effective_depth
    )
    if setting.scheme == "irregular":
        network.set_step_sizes(irregular_step_sizes(setting.num_layers, setting.unevenness))
    return network


def stop_step(setting: Setting) -> int:
    """Last step after which the mesh may change: 70 % of all, so that the weights settle on a fixed mesh."""
    return max(1, int(0.7 * setting.num_steps))


def hook_of(setting: Setting, network: LeakyResNet) -> StepSizeHook | None:
    """The hook of an adaptive scheme."""
    if setting.scheme not in RULES:
        return None
    return StepSizeHook(
        network,
        every_n_steps=setting.every_n_steps,
        damping=setting.damping,
        stop_step=stop_step(setting),
        max_leak=setting.max_leak or None,
        rule=setting.scheme,
        move_weights=setting.move_weights,
        scale_gradients=setting.scale_gradients,
    )


def optimizer_of(setting: Setting, network: LeakyResNet) -> torch.optim.Optimizer:
    """The optimizer, at the learning rate that a run starts with."""
    rate = setting.learning_rate or default_learning_rate(setting.effective_depth)
    if setting.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=rate, fused=True)
    return torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)


def train(setting: Setting, data: Data) -> LeakyResNet:
    """Train a network on the objective ``C + (λ/(2L̃)) Σ_l ρ_l ‖W_l‖²_F``."""
    network = network_of(setting)
    for _ in training(setting, data, network):
        pass
    return network


def training(
    setting: Setting, data: Data, network: LeakyResNet, batch_size: int = 0
) -> Iterator[tuple[int, torch.optim.Optimizer]]:
    """Train a network, and pause after every step.

    Args:
        setting: How to train.
        data: Its points.
        network: What to train.
        batch_size: Points of a batch; 0 for all.

    Yields:
        The number of the step, counted from 1, and the optimizer.
    """
    optimizer = optimizer_of(setting, network)
    last_rate = optimizer.param_groups[0]["lr"] / 100
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, setting.num_steps, last_rate)
    hook = hook_of(setting, network)
    if hook is not None:
        hook.attach(optimizer)
    batches = _batches(data["train"], batch_size, setting.seed)
    for step, (inputs, targets) in enumerate(islice(batches, setting.num_steps), start=1):
        optimizer.zero_grad()
        loss = cost(network(inputs), targets) + setting.weight_decay * network.regularizer()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        yield step, optimizer
    if hook is not None:
        hook.detach()


def _batches(points: tuple[Tensor, Tensor], batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All points again and again, or batches of them in a new order every epoch."""
    generator = torch.Generator().manual_seed(seed)
    while not batch_size:
        yield points
    while True:
        order = torch.randperm(len(points[0]), generator=generator)
        for chosen in order.split(batch_size):  # type: ignore[no-untyped-call]
            yield points[0][chosen], points[1][chosen]


@torch.no_grad()
def errors(network: LeakyResNet, data: Data) -> dict[str, float]:
    """Mean squared errors on the three splits; targets have variance 1."""
    found = {split: cost(network(inputs), targets) / targets.shape[1] for split, (inputs, targets) in data.items()}
    return {f"{split}_error": float(error) for split, error in found.items()}


def trajectory(network: LeakyResNet, data: Data, weight_decay: float) -> tuple[Tensor, Tensor]:
    """Representations A_0, …, A_L and momenta B_1, …, B_L on the training points, in float64 as the network is."""
    inputs, targets = data["train"]
    path = [network.input_map(inputs.to(network.step_sizes))]
    for layer, step_size in zip(network.layers, network.step_sizes, strict=True):
        path.append(layer(path[-1], step_size))
    gradients = torch.autograd.grad(cost(network.output_map(path[-1]), targets.to(network.step_sizes)), path[1:])
    return torch.stack(path).detach(), -torch.stack(gradients) / weight_decay


@dataclass(frozen=True)
class Trained:
    """A trained network in float64, and what the studies read of it on the training points.

    Attributes:
        network: The network.
        path: A_0, …, A_L.
        momenta: B_1, …, B_L.
        errors: Mean squared errors on the three splits.
    """

    network: LeakyResNet
    path: Tensor
    momenta: Tensor
    errors: dict[str, float]

    @property
    def before(self) -> Tensor:
        """A_0, …, A_{L−1}, where the layers are read."""
        return self.path[:-1]

    @property
    def velocities(self) -> Tensor:
        """V_1, …, V_L."""
        return velocity(self.before, self.path[1:], self.network.step_sizes)

    @property
    def hamiltonians(self) -> Tensor:
        """H of each layer, in momentum form."""
        return hamiltonian(self.before, self.momenta, self.network.effective_depth)

    @property
    def residuals(self) -> Tensor:
        """Criticality residual of each layer."""
        weights = self.network.weights().detach()
        return criticality_residual(weights, self.before, self.momenta, self.network.effective_depth)


def read(network: LeakyResNet, data: Data, weight_decay: float) -> Trained:
    """Read a trained network, which is left in float64."""
    found = errors(network, data)
    return Trained(network.double(), *trajectory(network, data, weight_decay), found)
