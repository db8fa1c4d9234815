"""Changing the number of layers."""

from lightning_leaky.refining.interpolation import Interpolation, interpolate_layers, interpolation_of
from lightning_leaky.refining.mesh import discretisation_errors, refined_step_sizes
from lightning_leaky.refining.network import Refinement
from lightning_leaky.refining.refinement_hook import RefinementHook, RefinementSettings
from lightning_leaky.refining.remesh import move_parameters, remeshed_layers

__all__ = [
    "Interpolation",
    "Refinement",
    "RefinementHook",
    "RefinementSettings",
    "discretisation_errors",
    "interpolate_layers",
    "interpolation_of",
    "move_parameters",
    "refined_step_sizes",
    "remeshed_layers",
]
