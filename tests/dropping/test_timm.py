"""Models of timm."""

import pytest
import torch

from lightning_leaky.dropping import drop_layers
from tests.dropping.helpers import outputs, same, skipped
from tests.others.stubs import timm_module

pytestmark = pytest.mark.slow


def made(name, **settings):
    torch.manual_seed(0)
    model = timm_module().create_model(name, pretrained=False, num_classes=3, **settings)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_vision_transformer():
    sizes = {"img_size": 32, "embed_dim": 8, "num_heads": 2}
    model, inputs = made("vit_tiny_patch16_224", depth=4, **sizes), torch.randn(2, 3, 32, 32)
    want = skipped(model, ["blocks.0", "blocks.2"], inputs)
    drop_layers(model, ["blocks.0", "blocks.2"], inputs)
    assert same(outputs(model, inputs), want)
    again = made("vit_tiny_patch16_224", depth=2, **sizes)
    again.load_state_dict(model.state_dict())
    assert same(outputs(again, inputs), want)


def test_residual_network():
    """The first block of a stage changes the shape."""
    model, inputs = made("resnet18"), torch.randn(1, 3, 64, 64)
    want = skipped(model, ["layer2.1"], inputs)
    with pytest.raises(ValueError, match=r"layer 'layer3.0' cannot be left out: it maps \(1, 128, 8, 8\) to"):
        drop_layers(model, ["layer2.1", "layer3.0"], inputs)
    with pytest.raises(ValueError, match="is the attribute 'layer2' of ResNet"):
        drop_layers(model, "layer2", inputs)
    assert len(model.layer2) == 2
    drop_layers(model, "layer2.1", inputs)
    assert same(outputs(model, inputs), want)
    assert len(model.layer2) == 1
