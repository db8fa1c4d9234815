"""Removing blocks from a model for good, and what that saves."""

from lightning_leaky.dropping.drop import Expense, bought, drop_layers, expense_of

__all__ = ["Expense", "bought", "drop_layers", "expense_of"]
