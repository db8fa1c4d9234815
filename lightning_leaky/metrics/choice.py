"""Choices of quantities by key, record or import path."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.metrics.records import QUANTITIES
from lightning_leaky.utilities.arguments import located


def resolve_quantities(quantities: Sequence[str | Quantity]) -> tuple[Quantity, ...]:
    """Return the records of some quantities: ours in the order of `QUANTITIES`, then others as they come."""
    if isinstance(quantities, str):
        raise ValueError(f"`quantities` must be a list of names, got the string {quantities!r}; put it in brackets.")
    if not quantities:
        raise ValueError(f"`quantities` must be chosen from {list(QUANTITIES)}, got none.")
    found = list(dict.fromkeys(map(_resolved, quantities)))
    keys = [record.key for record in found]
    if len(set(keys)) < len(keys):
        raise ValueError(f"`quantities` must have different keys, got {keys}; rename those of your own.")
    return tuple(sorted(found, key=lambda record: [*QUANTITIES, record.key].index(record.key)))


def plain_quantities(quantities: Sequence[str | Quantity]) -> tuple[str | Quantity, ...]:
    """Replace our records, which do not pickle, by their keys."""
    return tuple(one.key if isinstance(one, Quantity) and QUANTITIES.get(one.key) is one else one for one in quantities)


def _resolved(quantity: str | Quantity) -> Quantity:
    record = (QUANTITIES.get(quantity) or located(quantity)) if isinstance(quantity, str) else quantity
    if not isinstance(record, Quantity):
        raise ValueError(
            f"`quantities` must be chosen from {list(QUANTITIES)}, or be records, or their import paths, got "
            f"{quantity!r}."
        )
    return record
