"""Networks with layer step-sizes."""

from lightning_leaky.models.leaky_layer import LeakyLayer
from lightning_leaky.models.leaky_residual import LeakyResidual, make_leaky, unmake_leaky
from lightning_leaky.models.leaky_resnet import LeakyResNet
from lightning_leaky.models.leaky_steps import LeakySteps
from lightning_leaky.models.settings import NetworkSettings

__all__ = ["LeakyLayer", "LeakyResNet", "LeakyResidual", "LeakySteps", "NetworkSettings", "make_leaky", "unmake_leaky"]
