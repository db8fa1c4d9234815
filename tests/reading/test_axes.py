"""Which axis is the width, as the modules inside a block say."""

import warnings
from functools import partial

import pytest
import torch
from torch import Size, nn

from lightning_leaky import Layout, measure_path
from lightning_leaky.reading.layout import axes_told


class Residual(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, hidden):
        return hidden + self.parts(hidden)


class Last(nn.Module):
    """(batch, height, width, channels) in, convolved by a kernel that wants channels first."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 24), nn.Linear(24, 6)

    def forward(self, hidden):
        return hidden + self.down(self.up(self.norm(hidden)).relu())


class Custom(nn.Module):
    """Weights of its own, no module of torch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, hidden):
        return hidden + hidden @ self.weight


BLOCKS = {
    "time series": (lambda: Residual(nn.Conv1d(6, 6, 3, padding=1), nn.BatchNorm1d(6)), (8, 6, 40), "nct"),
    "point clouds": (lambda: Residual(nn.Conv1d(6, 6, 1), nn.GroupNorm(2, 6)), (8, 6, 100), "nct"),
    "batch norm alone": (lambda: Residual(nn.BatchNorm1d(6, affine=False), nn.Tanh()), (8, 6, 40), "nct"),
    "tokens": (lambda: Residual(nn.LayerNorm(6), nn.Linear(6, 6)), (8, 40, 6), "ntc"),
    "weights of its own": (Custom, (8, 40, 6), "ntc"),
    "images": (lambda: Residual(nn.Conv2d(6, 6, 3, padding=1)), (8, 6, 5, 7), "nchw"),
    "depthwise": (lambda: Residual(nn.Conv2d(6, 6, 3, padding=1, groups=6)), (8, 6, 5, 7), "nchw"),
    "channels last": (Last, (8, 5, 7, 6), "nhwc"),
    "norm without weights": (lambda: Residual(nn.LayerNorm(6, elementwise_affine=False)), (8, 5, 7, 6), "nhwc"),
    "video": (lambda: Residual(nn.Conv3d(6, 6, 3, padding=1)), (4, 6, 3, 5, 7), "ncdhw"),
    "video, channels last": (Last, (4, 3, 5, 7, 6), "ndhwc"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_modules_of_a_block_tell_its_axes(name):
    make, shape, axes = BLOCKS[name]
    torch.manual_seed(0)
    network, inputs = nn.Sequential(make(), make()).eval(), torch.randn(shape)
    right = measure_path(network, [inputs], ["cost_of_identity"], layers="*", layout=Layout(axes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = measure_path(network, [inputs], ["cost_of_identity"], layers="*")
    torch.testing.assert_close(read["cost_of_identity"], right["cost_of_identity"])


def test_layers_of_torch_say_whether_sequences_come_first():
    block = nn.TransformerEncoderLayer(6, 2, 12)
    assert axes_told([(block, Size([5, 8, 6]))]) == "tnc"
    assert axes_told([(nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), Size([8, 5, 6]))]) == "ntc"
    inside = Residual(nn.MultiheadAttention(6, 2))  # a block may turn its axes for it
    assert axes_told([(inside, Size([8, 5, 6]))]) == "ntc"


@pytest.mark.parametrize(
    ("blocks", "shape"),
    [
        pytest.param([nn.Tanh(), nn.Tanh()], (8, 6, 40), id="silence"),
        pytest.param([Residual(nn.Conv1d(6, 6, 1), nn.Linear(6, 6))] * 2, (8, 6, 6), id="contradiction"),
    ],
)
def test_a_doubt_is_said_with_the_remedy(blocks, shape):
    network = nn.Sequential(*blocks)
    read = partial(
        measure_path, network, [torch.randn(shape)], ["cost_of_identity"], layers=lambda name, _: name in "01"
    )
    with pytest.warns(UserWarning, match=r"do not tell which axis .*Layout\('ntc'\).*'nct'"):
        read()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(layout=Layout("nct"))
