"""What training cost, by the settings of a run."""

import pandas as pd
from torch.utils.flop_counter import FlopCounterMode

from examples.paper.refinement import Refined, map_flops
from examples.paper.training import data_of, network_of, training


def test_the_products_of_the_two_maps_are_what_torch_counts():
    setting = Refined(0, 3.0, 4, 0.03, dims="30-6-3-20", teacher="resnet", num_steps=2, num_points=50, width=10)
    data, network = data_of(setting), network_of(setting)
    with FlopCounterMode(display=False) as counter:
        for _ in training(setting, data, network):
            pass
    counts = counter.get_flop_counts()
    counted = sum(sum(counts[f"LeakyResNet.{name}"].values()) for name in ("input_map", "output_map"))
    assert counted == map_flops(pd.DataFrame([vars(setting)])).item()
