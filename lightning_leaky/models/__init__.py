"""Networks with layer step-sizes."""

from lightning_leaky.models.leaky_residual import LeakyResidual, LeakySteps, make_leaky, unmake_leaky
from lightning_leaky.models.leaky_resnet import LeakyLayer, LeakyResNet

__all__ = ["LeakyLayer", "LeakyResNet", "LeakyResidual", "LeakySteps", "make_leaky", "unmake_leaky"]
