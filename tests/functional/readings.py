"""The scalar quantities of `lightning_leaky.functional`, each as a function of a `Problem` by every route to it."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_leaky import functional
from lightning_leaky.functional import k_inner_products_from_moments
from lightning_leaky.metrics import QUANTITIES, Sums
from tests import references
from tests.references import Reference
from tests.strategies import Problem


class Reading(NamedTuple):
    from_tensors: Callable[[Problem], Tensor]
    reference: Callable[[Problem], Reference]
    arguments: tuple[str, ...]
    """The tensors that the function takes, by the names of its parameters."""
    from_moments: Callable[[Problem], Tensor] | None = None
    """As a record computes it from the sums of a data set; momenta have no other sums than their function's."""

    @property
    def routes(self) -> dict[str, Callable[[Problem], Tensor]]:
        every = {"tensors": self.from_tensors, "moments": self.from_moments}
        return {name: route for name, route in every.items() if route is not None}


def _from_moments(name: str, problem: Problem) -> Tensor:
    products = k_inner_products_from_moments(problem.moments(), problem.k_norm)
    sums = Sums(torch.zeros(0), problem.depth, products.flatten(end_dim=-3) if products.ndim > 2 else products[None])
    return QUANTITIES[name].compute(sums).reshape(products.shape[:-2])


def _energy(name: str, from_tensors: Callable[[Problem], Tensor], *arguments: str) -> Reading:
    def reference(p: Problem) -> Reference:
        return references.energies(p.A, p.V, p.features, p.depth, p.k_norm)[name]

    return Reading(from_tensors, reference, ("representation", *arguments, "features"), partial(_from_moments, name))


def _momentum_reading(name: str, from_tensors: Callable[[Problem], Tensor]) -> Reading:
    def reference(p: Problem) -> Reference:
        return references.momentum_readings(p.W, p.A, p.B, p.features, p.depth)[name]

    return Reading(from_tensors, reference, ("representation", "momentum", "features"))


ENERGIES = {
    "cost_of_identity": _energy("cost_of_identity", lambda p: functional.cost_of_identity(p.A, p.k_norm, p.S)),
    "potential_energy": _energy("potential_energy", lambda p: functional.potential_energy(p.A, p.depth, p.k_norm, p.S)),
    "kinetic_energy": _energy(
        "kinetic_energy", lambda p: functional.kinetic_energy(p.A, p.V, p.depth, p.k_norm, p.S), "velocity"
    ),
    "cross_term": _energy("cross_term", lambda p: functional.cross_term(p.A, p.V, p.k_norm, p.S), "velocity"),
    "lagrangian": _energy("lagrangian", lambda p: functional.lagrangian(p.A, p.V, p.depth, p.k_norm, p.S), "velocity"),
    "energy_hamiltonian": _energy(
        "energy_hamiltonian", lambda p: functional.energy_hamiltonian(p.A, p.V, p.depth, p.k_norm, p.S), "velocity"
    ),
}

MOMENTA = {
    "hamiltonian": _momentum_reading("hamiltonian", lambda p: functional.hamiltonian(p.A, p.B, p.depth, p.S)),
    "criticality_residual": _momentum_reading(
        "criticality_residual", lambda p: functional.criticality_residual(p.W, p.A, p.B, p.depth, p.S)
    ),
}

READINGS = ENERGIES | MOMENTA
