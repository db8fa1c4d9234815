"""Networks with layer step-sizes."""

from lightning_leaky.models.leaky_resnet import LeakyLayer, LeakyResNet

__all__ = ["LeakyLayer", "LeakyResNet"]
