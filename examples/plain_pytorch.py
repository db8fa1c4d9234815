"""The step-size hook and the functions without Lightning.

python examples/plain_pytorch.py
"""

from argparse import ArgumentParser

import torch

from lightning_leaky import LeakyResNet, StepSizeHook, cost_of_identity


def main(num_steps: int) -> None:
    """Fit a random linear map of rank 2, adapting the step-sizes, and read the network."""
    torch.manual_seed(0)
    inputs = torch.randn(200, 10)
    targets = inputs @ torch.randn(10, 2) @ torch.randn(2, 10) / 10**0.5

    network = LeakyResNet(10, 10, width=40, num_layers=10, effective_depth=3.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    hook = StepSizeHook(network)
    hook.attach(optimizer)

    for _ in range(num_steps):
        loss = (network(inputs) - targets).square().sum(-1).mean() + 0.05 * network.regularizer()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with torch.no_grad():
        costs = cost_of_identity(network.representations(inputs))
    print(f"loss {loss.item():.3f}")
    print("step-sizes       ", [round(rho, 3) for rho in network.step_sizes.tolist()])
    print("cost of identity ", [round(cost, 1) for cost in costs.tolist()])


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-steps", type=int, default=500)
    main(parser.parse_args().num_steps)
