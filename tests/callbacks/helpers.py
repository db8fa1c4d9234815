"""What the tests of both callbacks share: recorders, readings computed by hand, logs read back."""

import csv
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from lightning_leaky import KNorm, LeakyResNet, LeakyResNetModule
from lightning_leaky.functional import (
    block_influence,
    cost_of_identity,
    criticality_residual,
    cross_term,
    energy_hamiltonian,
    features,
    first_order,
    hamiltonian,
    kinetic_energy,
    lagrangian,
    pontryagin_hamiltonian,
    pontryagin_residual,
    potential_energy,
    relative_distance,
    relative_speed,
    stable_rank,
    velocity,
)

ENERGIES = ("cost_of_identity", "kinetic_energy", "potential_energy", "cross_term", "lagrangian", "energy_hamiltonian")
MOVES = ("relative_speed", "block_influence", "relative_distance")
MOMENTA = ("first_order", "hamiltonian", "criticality_residual", "momentum_norm", "features_momentum_norm")
OF_PARAMETERS = ("pontryagin_hamiltonian", "pontryagin_residual")
DEFAULTS = ("cost_of_identity", "kinetic_energy", "block_influence")
"""What is read of any blocks, without a leak."""
ALL = (*ENERGIES, *MOVES, "speed", "stable_rank", *OF_PARAMETERS, *MOMENTA)


class NoisyModule(LeakyResNetModule):
    """Draws from the global generator at every forward pass: a callback that does so too changes the losses."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs + 0.1 * torch.randn_like(inputs))


class ConstantRate(LeakyResNetModule):
    """Without a schedule: a run does not depend on how many epochs are planned."""

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class TwoNetworks(LightningModule):
    """Two networks, each with an optimizer of its own that steps once a batch."""

    def __init__(self, num_layers: int = 4) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.one, self.other = (LeakyResNet(3, 2, 6, num_layers, 2.0) for _ in range(2))

    def training_step(self, batch, batch_idx):
        for network, optimizer in zip((self.one, self.other), self.optimizers(), strict=True):
            optimizer.zero_grad()
            loss = (network(batch[0]) - batch[1]).square().mean()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self):
        return [torch.optim.SGD(network.parameters(), lr=1e-2) for network in (self.one, self.other)]


class Recorder(Callback):
    """Keeps losses, weights and step-sizes before each optimizer step, batches, and readings after each step."""

    def __init__(self, monitor=None):
        self.monitor = monitor
        self.losses, self.batches, self.states, self.readings = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not self.batches or len(self.batches[-1]) == trainer.accumulate_grad_batches:
            self.batches.append([])
            self.states.append({name: value.clone() for name, value in pl_module.state_dict().items()})
        self.batches[-1].append(batch)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].clone())
        if self.monitor is not None and len(self.batches[-1]) == trainer.accumulate_grad_batches:
            self.readings.append(self.monitor.readings.get("train"))

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one optimizer step, its micro-batches joined."""
        inputs, targets = zip(*self.batches[number], strict=True)
        return torch.cat(inputs), torch.cat(targets)


def path_by_hand(network: nn.Module, inputs: Tensor) -> list[Tensor]:
    """A_0, …, A_L from the formula."""
    path = [network.input_map(inputs)]
    for layer, rho in zip(network.layers, network.step_sizes, strict=True):
        drive = features(path[-1]) @ torch.cat([layer.weight, layer.bias[:, None]], dim=1).T
        path.append((1 - rho * network.effective_depth) * path[-1] + rho * drive)
    return path


DEFAULT_NORM = KNorm()


def readings_by_hand(module: LeakyResNetModule, inputs: Tensor, targets: Tensor, k_norm: KNorm = DEFAULT_NORM):
    """Every quantity by name, shape (L,), from the functions of tensors and autograd."""
    network, depth = module.network, module.network.effective_depth
    path = path_by_hand(network, inputs)
    cost = module.cost(network.output_map(path[-1]), targets)
    momentum = -torch.stack(torch.autograd.grad(cost, path[1:], retain_graph=True)) / module.weight_decay
    decays = [module.weight_decay / depth * rho for rho in network.step_sizes.tolist()]  # of (λ/(2L̃))ρ‖W‖²
    thetas = [list(layer.parameters()) for layer in network.layers]
    slopes = torch.autograd.grad(cost, [one for theta in thetas for one in theta], retain_graph=True)
    paid = [d / 2 * sum(one.double().square().sum() for one in theta) for d, theta in zip(decays, thetas, strict=True)]
    previous, current = torch.stack(path[:-1]).detach(), torch.stack(path[1:]).detach()
    moved = velocity(previous, current, network.step_sizes)
    weights = torch.stack([torch.cat([layer.weight, layer.bias[:, None]], dim=1) for layer in network.layers]).detach()
    return {
        "cost_of_identity": cost_of_identity(previous, k_norm),
        "kinetic_energy": kinetic_energy(previous, moved, depth, k_norm),
        "relative_speed": relative_speed(previous, current, k_norm),
        "block_influence": block_influence(previous, current),
        "relative_distance": relative_distance(previous, current),
        "first_order": first_order(-module.weight_decay * momentum, previous, current),
        "pontryagin_hamiltonian": pontryagin_hamiltonian(
            -module.weight_decay * momentum, previous, current, torch.stack(paid).detach(), network.step_sizes.double()
        ),
        "pontryagin_residual": torch.stack(
            [
                pontryagin_residual(
                    [one.detach() for one in theta], slopes[2 * index : 2 * index + 2], [decays[index]] * 2
                )
                for index, theta in enumerate(thetas)
            ]
        ),
        "potential_energy": potential_energy(previous, depth, k_norm),
        "cross_term": cross_term(previous, moved, k_norm),
        "lagrangian": lagrangian(previous, moved, depth, k_norm),
        "energy_hamiltonian": energy_hamiltonian(previous, moved, depth, k_norm),
        "speed": (2 * depth * kinetic_energy(previous, moved, depth, k_norm)).sqrt(),
        "stable_rank": stable_rank(previous),
        "hamiltonian": hamiltonian(previous, momentum, depth),
        "criticality_residual": criticality_residual(weights, previous, momentum, depth),
        "momentum_norm": momentum.double().norm(dim=(1, 2)),
        "features_momentum_norm": (momentum.double().mT @ features(previous).double()).norm(dim=(1, 2)),
    }


def rows_of(log_dir: str | Path) -> list[dict[str, str]]:
    """Rows of a CSVLogger's file."""
    with open(Path(log_dir) / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def steps_with(rows: list[dict[str, str]], key: str) -> list[int]:
    """Values of the x-axis at which a key was logged."""
    return [int(row["step"]) for row in rows if row.get(key)]


class TwoOptimizers(LeakyResNetModule):
    """Steps the layers in one optimizer, twice a batch, and the maps in another, once."""

    automatic_optimization = False

    def configure_optimizers(self):
        maps = [*self.network.input_map.parameters(), *self.network.output_map.parameters()]
        return [torch.optim.SGD(maps, lr=1e-2), torch.optim.SGD(self.network.layers.parameters(), lr=1e-2)]

    def training_step(self, batch, batch_idx):
        of_maps, of_layers = self.optimizers()
        for optimizer in (of_maps, of_layers, of_layers):
            optimizer.zero_grad()
            self.manual_backward(self.step(batch, "train"))
            optimizer.step()
