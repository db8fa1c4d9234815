"""Taking blocks out of a model for good, and what that buys."""

from lightning_leaky.dropping.drop import drop_layers
from lightning_leaky.dropping.expense import Expense, bought, expense_of

__all__ = ["Expense", "bought", "drop_layers", "expense_of"]
