"""The scalar quantities of `lightning_leaky.functional`, each as a function of a `Problem` by every route to it."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from lightning_leaky import functional
from lightning_leaky.functional import MomentumMoments, momentum_moments
from tests import references
from tests.references import Reference
from tests.strategies import Problem


class Reading(NamedTuple):
    from_tensors: Callable[[Problem], Tensor]
    from_moments: Callable[[Problem], Tensor]
    reference: Callable[[Problem], Reference]
    arguments: tuple[str, ...]
    """The tensors that the function takes, by the names of its parameters."""


def momentum_moments_of(problem: Problem) -> MomentumMoments:
    return momentum_moments(problem.A, problem.B, problem.k_norm.activation, problem.k_norm.constant_column)


def features_of(problem: Problem) -> dict:
    return {"activation": problem.k_norm.activation, "constant_column": problem.k_norm.constant_column}


ENERGIES = {
    "cost_of_identity": Reading(
        lambda p: functional.cost_of_identity(p.A, p.k_norm),
        lambda p: functional.cost_of_identity_from_moments(p.moments(), p.k_norm),
        lambda p: references.cost_of_identity(p.A, p.k_norm),
        ("representation",),
    ),
    "potential_energy": Reading(
        lambda p: functional.potential_energy(p.A, p.depth, p.k_norm),
        lambda p: functional.potential_energy_from_moments(p.moments(), p.depth, p.k_norm),
        lambda p: references.potential_energy(p.A, p.depth, p.k_norm),
        ("representation",),
    ),
    "kinetic_energy": Reading(
        lambda p: functional.kinetic_energy(p.A, p.V, p.depth, p.k_norm),
        lambda p: functional.kinetic_energy_from_moments(p.moments(), p.depth, p.k_norm),
        lambda p: references.kinetic_energy(p.A, p.V, p.depth, p.k_norm),
        ("representation", "velocity"),
    ),
    "cross_term": Reading(
        lambda p: functional.cross_term(p.A, p.V, p.k_norm),
        lambda p: functional.cross_term_from_moments(p.moments(), p.k_norm),
        lambda p: references.cross_term(p.A, p.V, p.k_norm),
        ("representation", "velocity"),
    ),
    "lagrangian": Reading(
        lambda p: functional.lagrangian(p.A, p.V, p.depth, p.k_norm),
        lambda p: functional.lagrangian_from_moments(p.moments(), p.depth, p.k_norm),
        lambda p: references.lagrangian(p.A, p.V, p.depth, p.k_norm),
        ("representation", "velocity"),
    ),
    "energy_hamiltonian": Reading(
        lambda p: functional.energy_hamiltonian(p.A, p.V, p.depth, p.k_norm),
        lambda p: functional.energy_hamiltonian_from_moments(p.moments(), p.depth, p.k_norm),
        lambda p: references.energy_hamiltonian(p.A, p.V, p.depth, p.k_norm),
        ("representation", "velocity"),
    ),
}

MOMENTA = {
    "hamiltonian": Reading(
        lambda p: functional.hamiltonian(p.A, p.B, p.depth, **features_of(p)),
        lambda p: functional.hamiltonian_from_moments(momentum_moments_of(p), p.depth),
        lambda p: references.hamiltonian(p.A, p.B, p.depth, p.k_norm),
        ("representation", "momentum"),
    ),
    "criticality_residual": Reading(
        lambda p: functional.criticality_residual(p.W, p.A, p.B, p.depth, **features_of(p)),
        lambda p: functional.criticality_residual_from_moments(p.W, momentum_moments_of(p), p.depth),
        lambda p: references.criticality_residual(p.W, p.A, p.B, p.depth, p.k_norm),
        ("representation", "momentum"),
    ),
}

READINGS = ENERGIES | MOMENTA
