"""The mechanics of Leaky ResNets as pure functions of tensors.

Representations have shape (..., N, w): samples in rows, neurons in columns, any leading dimensions such as layers. Form
features σ(A) once with `features` and pass them on. All functions compute in float64 (float32 on MPS) and are
differentiable wherever the mathematics is. `second_moments` and `momentum_moments` add up over batches and processes.
"""

from lightning_leaky.functional.bounds import Bounds, rank_gap_bounds, speed_bounds
from lightning_leaky.functional.cost_of_identity import cost_of_identity, potential_energy
from lightning_leaky.functional.criticality import balancedness_defect, criticality_residual
from lightning_leaky.functional.features import Activation, features, resolve_activation, resolve_features
from lightning_leaky.functional.hamiltonian import bottleneck_rank, energy_hamiltonian, hamiltonian, hamiltonian_spread
from lightning_leaky.functional.k_norm import (
    KNorm,
    k_inner_products,
    k_inner_products_from_moments,
    operator_norm,
    relative_gamma,
)
from lightning_leaky.functional.kinetic_energy import kinetic_energy, path_length, velocity
from lightning_leaky.functional.lagrangian import cross_term, lagrangian
from lightning_leaky.functional.leaky_step import leak_scale, leaky_step, objective_weight_decay
from lightning_leaky.functional.moments import MomentumMoments, SecondMoments, momentum_moments, second_moments
from lightning_leaky.functional.movement import block_influence, first_order, relative_distance, relative_speed
from lightning_leaky.functional.path_median import path_median
from lightning_leaky.functional.pontryagin import pontryagin_hamiltonian, pontryagin_residual
from lightning_leaky.functional.projection import path_projection, principal_coordinate
from lightning_leaky.functional.shares import LayerShares, fewest_layers, layer_shares
from lightning_leaky.functional.spectrum import singular_values, singular_values_from_moments, stable_rank
from lightning_leaky.functional.step_size_rules import (
    RULES,
    RelativeDistanceRule,
    StepSizeRule,
    SwitchesRule,
    resolve_rule,
)
from lightning_leaky.functional.step_sizes import (
    adaptive_step_sizes,
    cap_step_sizes,
    check_step_sizes,
    equidistant_step_sizes,
    irregular_step_sizes,
    normalise_step_sizes,
    relative_distances,
)

__all__ = [
    "RULES",
    "Activation",
    "Bounds",
    "KNorm",
    "LayerShares",
    "MomentumMoments",
    "RelativeDistanceRule",
    "SecondMoments",
    "StepSizeRule",
    "SwitchesRule",
    "adaptive_step_sizes",
    "balancedness_defect",
    "block_influence",
    "bottleneck_rank",
    "cap_step_sizes",
    "check_step_sizes",
    "cost_of_identity",
    "criticality_residual",
    "cross_term",
    "energy_hamiltonian",
    "equidistant_step_sizes",
    "features",
    "fewest_layers",
    "first_order",
    "hamiltonian",
    "hamiltonian_spread",
    "irregular_step_sizes",
    "k_inner_products",
    "k_inner_products_from_moments",
    "kinetic_energy",
    "lagrangian",
    "layer_shares",
    "leak_scale",
    "leaky_step",
    "momentum_moments",
    "normalise_step_sizes",
    "objective_weight_decay",
    "operator_norm",
    "path_length",
    "path_median",
    "path_projection",
    "pontryagin_hamiltonian",
    "pontryagin_residual",
    "potential_energy",
    "principal_coordinate",
    "rank_gap_bounds",
    "relative_distance",
    "relative_distances",
    "relative_gamma",
    "relative_speed",
    "resolve_activation",
    "resolve_features",
    "resolve_rule",
    "second_moments",
    "singular_values",
    "singular_values_from_moments",
    "speed_bounds",
    "stable_rank",
    "velocity",
]
