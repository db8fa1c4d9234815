"""Which quantities are meant: by key, by record or by import path."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.metrics.records import QUANTITIES
from lightning_leaky.utilities.imports import located


def resolve_quantities(quantities: Sequence[str | Quantity]) -> tuple[Quantity, ...]:
    """Return the records of some quantities: ours in their own order, then others as they come.

    Args:
        quantities: Keys of `QUANTITIES`, records, or their import paths.

    Raises:
        ValueError: If there are none, one is not known, or two have the same key.

    Example:
        >>> [record.key for record in resolve_quantities(["stable_rank", "cost_of_identity"])]
        ['cost_of_identity', 'stable_rank']
    """
    if isinstance(quantities, str):
        raise ValueError(f"`quantities` must be a list of names, got the string {quantities!r}; put it in brackets.")
    if not quantities:
        raise ValueError(f"`quantities` must be chosen from {list(QUANTITIES)}, got none.")
    found = list(dict.fromkeys(map(_resolved, quantities)))
    keys = [record.key for record in found]
    if len(set(keys)) < len(keys):
        raise ValueError(f"`quantities` must have different keys, got {keys}; rename those of your own.")
    order = list(QUANTITIES)
    return tuple(sorted(found, key=lambda record: order.index(record.key) if record.key in order else len(order)))


def plain_quantities(quantities: Sequence[str | Quantity]) -> tuple[str | Quantity, ...]:
    """Return quantities with the records of this package as keys: a copy for another process pickles none of them."""
    return tuple(one.key if isinstance(one, Quantity) and QUANTITIES.get(one.key) is one else one for one in quantities)


def _resolved(quantity: str | Quantity) -> Quantity:
    if isinstance(quantity, Quantity):
        return quantity
    record = (QUANTITIES.get(quantity) or located(quantity)) if isinstance(quantity, str) else None
    if not isinstance(record, Quantity):
        raise ValueError(
            f"`quantities` must be chosen from {list(QUANTITIES)}, or be records, or their import paths, got "
            f"{quantity!r}."
        )
    return record
