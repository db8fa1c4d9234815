"""The studies read a trained network by formulas of their own; `measure_path` must read the same."""

import torch

from examples.paper.training import Setting, cost, data_of, network_of, read
from lightning_leaky import measure_path

SETTING = Setting(
    seed=1, effective_depth=3.0, num_layers=5, weight_decay=0.2, scheme="irregular", num_points=40, width=12
)


def test_studies_read_what_the_package_reads():
    data = data_of(SETTING)
    trained = read(network_of(SETTING), data, SETTING.weight_decay)
    batch = tuple(values.double() for values in data["train"])
    readings = measure_path(trained.network, [batch], cost=cost, weight_decay=SETTING.weight_decay)
    torch.testing.assert_close(trained.hamiltonians, readings["hamiltonian"], rtol=1e-8, atol=0)
    torch.testing.assert_close(trained.residuals, readings["criticality_residual"], rtol=1e-8, atol=0)
