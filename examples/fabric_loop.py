"""A loop of one's own with Lightning Fabric: adaptive step-sizes, and readings of every fiftieth step.

    python examples/fabric_loop.py --devices 2
    fabric run --accelerator cpu --devices 2 examples/fabric_loop.py

`StepSizeHook` and `PathMonitor` know nothing of Fabric: a loop with plain torch and DDP looks the same.
"""

import os
from argparse import ArgumentParser
from itertools import chain, repeat

import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader, TensorDataset

from lightning_leaky import LeakyResNet, PathMonitor, Readings, StepSizeHook

WEIGHT_DECAY = 0.05


def main(num_epochs: int, devices: str = "auto") -> Readings | None:
    """Fit a random linear map of rank 2, and return the last readings."""
    fabric = Fabric(accelerator="cpu", devices=devices)
    if not os.getenv("LT_CLI_USED"):  # `fabric run` has launched the processes
        fabric.launch()
    torch.manual_seed(0)  # the same data on every process
    inputs = torch.randn(200, 10)
    targets = inputs @ torch.randn(10, 2) @ torch.randn(2, 10) / 10**0.5
    data = DataLoader(TensorDataset(inputs, targets), batch_size=100 // fabric.world_size, shuffle=True)
    loader = fabric.setup_dataloaders(data)

    network = LeakyResNet(10, 10, width=40, num_layers=10, effective_depth=3.0)
    model, optimizer = fabric.setup(network, torch.optim.Adam(network.parameters(), lr=5e-3))
    hook = StepSizeHook(model)
    hook.attach(optimizer)
    monitor = PathMonitor(model, every_n_steps=50, optimizer=optimizer, weight_decay=WEIGHT_DECAY)

    for inputs, targets in chain.from_iterable(repeat(loader, num_epochs)):
        with monitor.batch(inputs):
            cost = (model(inputs) - targets).square().sum(-1).mean()
            fabric.backward(cost + WEIGHT_DECAY * network.regularizer())
        if readings := monitor.read():  # on every process, and before the weights move
            fabric.log_dict(readings.scalars(), step=monitor.num_steps)
            ranks = ", ".join(f"{value:.1f}" for value in readings["cost_of_identity"])
            fabric.print(f"step {monitor.num_steps}: cost of this batch {cost.item():.3f}, of identity {ranks}")
        optimizer.step()
        optimizer.zero_grad()

    monitor.detach()
    hook.detach()
    fabric.print("step-sizes", [round(rho, 3) for rho in network.step_sizes.tolist()])
    return monitor.readings


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-epochs", type=int, default=200)
    parser.add_argument("--devices", default="auto")
    main(**vars(parser.parse_args()))
