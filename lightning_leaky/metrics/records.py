"""The quantities of this package."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from lightning_leaky.functional.cost_of_identity import potential_energy_of
from lightning_leaky.functional.hamiltonian import energy_hamiltonian_of, hamiltonian_of, hamiltonian_spread, rank_of
from lightning_leaky.functional.kinetic_energy import kinetic_energy_of, path_length_of, speed_of
from lightning_leaky.functional.lagrangian import lagrangian_of
from lightning_leaky.functional.movement import block_influence_of, relative_speed_of
from lightning_leaky.functional.path_median import path_median
from lightning_leaky.functional.pontryagin import pontryagin_hamiltonian_of, pontryagin_residual_of
from lightning_leaky.functional.spectrum import stable_rank_of
from lightning_leaky.functional.step_sizes import distance_squares, relative_distances_of
from lightning_leaky.metrics.quantity import Quantity, Summary

BOTTLENECK = "Is there a bottleneck?"
TRUST = "Can the reading be trusted?"

# Lambdas are fine: only keys of these records are pickled.
_OF_A_HAMILTONIAN = (
    Summary(
        "bottleneck_rank",
        "Median of −2H/L̃ along the path: nears the rank of the bottleneck from below as L̃ grows.",
        lambda values, step_sizes, depth: path_median(rank_of(values, depth), step_sizes),
        needs_leak=True,
    ),
    Summary(
        "bottleneck_rank_min",
        "Least of −2H/L̃ over the layers.",
        lambda values, step_sizes, depth: rank_of(values, depth).amin(),
        needs_leak=True,
    ),
    Summary(
        "bottleneck_rank_max",
        "Greatest of −2H/L̃: far from the least, there are too few layers or training is no optimum.",
        lambda values, step_sizes, depth: rank_of(values, depth).amax(),
        needs_leak=True,
    ),
    Summary(
        "spread",
        "Greatest minus least H over the layers: 0 on an exact optimum of many layers.",
        lambda values, step_sizes, depth: hamiltonian_spread(values),
        chart=(TRUST, "spread of the Hamiltonian"),
        unit="energy",
    ),
)

_LEAST_COST = Summary(
    "min",
    "Least over the layers: nears the rank of the bottleneck from above as L̃ grows.",
    lambda values, step_sizes, depth: values.amin(),
    chart=(BOTTLENECK, "least cost of identity"),
)

_GREATEST = Summary("max", "Greatest over the layers.", lambda values, step_sizes, depth: values.amax())

_RECORDS = (
    Quantity(
        "cost_of_identity",
        lambda sums: sums.products[:, 0, 0],
        "representation",
        title="cost of identity",
        formula="‖A‖²_K",
        says="Soft count of the dimensions in use where a layer starts; its least value nears the rank from above.",
        summaries=(_LEAST_COST,),
        heading="identity",
        heat_map="log",
        default="all",
    ),
    Quantity(
        "kinetic_energy",
        lambda sums: kinetic_energy_of(sums.products[:, 1, 1], sums.effective_depth),
        "squares",
        title="kinetic energy",
        formula="‖∂_pA‖²_K / (2L̃)",
        unit="energy",
        says="How much a layer works. Near 0 the representation passes as it is.",
        heading="kinetic",
        heat_map="log",
        default="all",
    ),
    Quantity(
        "relative_speed",
        lambda sums: relative_speed_of(sums.products, sums.step_sizes),
        "squares",
        title="relative speed",
        formula="‖A_l − A_{l−1}‖_K / ‖A_{l−1}‖_K",
        says="How far a layer moves the representation, measured by the representation itself.",
    ),
    Quantity(
        "block_influence",
        lambda sums: block_influence_of(sums.turns),
        "turns",
        title="block influence",
        formula="1 − mean cos(A_{l−1}, A_l)",
        says="How far a layer turns the representation of a sample. Near 0 it only scales it.",
        heading="influence",
        heat_map="log",
        default="all",
    ),
    Quantity(
        "relative_distance",
        lambda sums: relative_distances_of(sums.own.mT, sums.step_sizes.new_ones(())),
        "own",
        sums=distance_squares,
        title="relative distance",
        formula="‖A_l − A_{l−1}‖_F / ‖A_l‖_F",
        says="How much of what a layer hands on is its own work.",
    ),
    Quantity(
        "first_order",
        lambda sums: sums.first_order[:, 1],
        "gradients",
        title="first-order score",
        formula="Σ_i abs⟨∂C/∂A_l, A_{l−1} − A_l⟩_i",
        unit="cost",
        says="What leaving the layer out would cost, to first order, if no sample gained by it.",
    ),
    Quantity(
        "pontryagin_hamiltonian",
        lambda sums: pontryagin_hamiltonian_of(sums.first_order[:, 0], sums.parameters[:, 0], sums.step_sizes),
        "parameters",
        title="Hamiltonian of any block",
        formula="(⟨P_l, A_l − A_{l−1}⟩ − (d/2) ‖θ_l‖²) / ρ_l",
        unit="cost",
        says="Constant along the path of an optimum of many equal steps, whatever a block computes.",
        summaries=(replace(_OF_A_HAMILTONIAN[-1], chart=(TRUST, "spread of any block's Hamiltonian"), unit="cost"),),
    ),
    Quantity(
        "pontryagin_residual",
        lambda sums: pontryagin_residual_of(*sums.parameters[:, 1:].unbind(-1)),
        "parameters",
        title="residual of any block",
        formula="‖dθ + ∂C/∂θ‖ / ‖dθ‖",
        says="Near 0 the Hamiltonian of any block can be trusted; near 1 the cost says nothing of the weights.",
        summaries=(_GREATEST,),
        category=TRUST,
    ),
    Quantity(
        "potential_energy",
        lambda sums: potential_energy_of(sums.products[:, 0, 0], sums.effective_depth),
        "representation",
        title="potential energy",
        formula="−(L̃/2) ‖A‖²_K",
        unit="energy",
        says="The pull towards few dimensions: low where there are many.",
        default="leak",
    ),
    Quantity(
        "cross_term",
        lambda sums: sums.products[:, 0, 1],
        title="cross term",
        formula="⟨∂_pA, A⟩_K",
        says="Above 0 a layer moves the representation along itself, below 0 against itself.",
    ),
    Quantity(
        "lagrangian",
        lambda sums: lagrangian_of(sums.products, sums.effective_depth),
        title="Lagrangian",
        formula="‖L̃A + ∂_pA‖²_K / (2L̃)",
        unit="energy",
        says="Least cost in weight decay of the step, per unit of p.",
    ),
    Quantity(
        "energy_hamiltonian",
        lambda sums: energy_hamiltonian_of(sums.products, sums.effective_depth),
        "squares",
        title="Hamiltonian, energy form",
        formula="kinetic + potential energy",
        unit="energy",
        says="Constant along the path of an optimum of layers Wσ(A). Needs no loss, but feels the stabiliser γ.",
        summaries=_OF_A_HAMILTONIAN,
        default="leak",
    ),
    Quantity(
        "speed",
        lambda sums: speed_of(sums.products[:, 1, 1]),
        "squares",
        formula="‖∂_pA‖_K",
        says="How fast the representation moves; its integral is the path's length.",
        summaries=(
            Summary(
                "path_length",
                "Length of the path: integral of the speed over p.",
                lambda values, step_sizes, depth: path_length_of(values, step_sizes),
            ),
        ),
    ),
    # Not read by default: the spectra take several times as long as all energies.
    Quantity(
        "stable_rank",
        lambda sums: stable_rank_of(sums.singular_values),
        "spectrum",
        title="stable rank",
        formula="‖A‖²_* / ‖A‖²_F",
        says="Dimensions, each weighed by its size.",
    ),
    Quantity(
        "hamiltonian",
        lambda sums: hamiltonian_of(sums.features_momentum_square, sums.momentum_representation, sums.effective_depth),
        "momenta",
        title="Hamiltonian, momentum form",
        formula="(L̃/2) ‖Bᵀσ(A)‖² − L̃ tr(BᵀA)",
        unit="energy",
        says="Constant along the path of an optimum of layers Wσ(A).",
        summaries=_OF_A_HAMILTONIAN,
        heading="H",
        default="weights",
    ),
    Quantity(
        "criticality_residual",
        lambda sums: sums.residual,
        "weights",
        title="criticality residual",
        formula="‖W − L̃Bᵀσ(A)‖ / ‖W‖",
        says="Near 0 the Hamiltonian can be trusted, near 1 it says nothing yet: training is far from an optimum.",
        summaries=(_GREATEST,),
        category=TRUST,
        heading="residual",
        default="weights",
    ),
    Quantity(
        "momentum_norm",
        lambda sums: sums.momentum_square.sqrt(),
        "momenta",
        title="momentum",
        formula="‖B‖_F = ‖∂C/∂A‖_F / λ",
        says="How strongly the cost asks a representation to change.",
    ),
    Quantity(
        "features_momentum_norm",
        lambda sums: sums.features_momentum_square.sqrt(),
        "momenta",
        title="momentum of the features",
        formula="‖Bᵀσ(A)‖_F",
        says="What an optimal weight is made of: W is a multiple of Bᵀσ(A).",
    ),
)

QUANTITIES: dict[str, Quantity] = {record.key: record for record in _RECORDS}
"""The quantities of this package by key."""

# Changes at L̃ = 0, which drops the paper's factor 1/L̃; None if the quantity is 0 there or repeats another.
_WITHOUT_LEAK: dict[str, dict[str, Any] | None] = {
    "cost_of_identity": {
        "says": "Soft count of the dimensions in use where a layer starts; with linear features at most the width.",
        "summaries": (replace(_LEAST_COST, says="Least over the layers."),),
    },
    "kinetic_energy": {"formula": "½ ‖∂_pA‖²_K"},
    "hamiltonian": {"formula": "½ ‖Bᵀσ(A)‖²"},
    "criticality_residual": {"formula": "‖W − Bᵀσ(A)‖ / ‖W‖"},
    **dict.fromkeys(("potential_energy", "lagrangian", "energy_hamiltonian")),
}

STEP_SIZE = Quantity(
    "step_size",
    lambda sums: sums.step_sizes,
    title="step-size",
    formula="ρ_l, summing to 1",
    says="A layer's share of the path: small where it moves fast.",
    heat_map="linear",
)
"""What `StepSizeAdapter` logs: explained and charted, but not read."""


def records_at(records: Iterable[Quantity], effective_depth: float) -> dict[str, Quantity]:
    """Return the records to show at this L̃, by key; without a leak no ranks and nothing empty."""
    if effective_depth > 0:
        return {record.key: record for record in records}
    said = {record: _WITHOUT_LEAK.get(record.key, {}) if record in _RECORDS else {} for record in records}
    held = [replace(record, **changes) for record, changes in said.items() if changes is not None]
    return {one.key: replace(one, summaries=tuple(s for s in one.summaries if not s.needs_leak)) for one in held}
