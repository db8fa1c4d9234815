"""A bounded record of a quantity of every layer over training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class History:
    """Rows of one number a layer with the step of each; every second one is dropped when there are too many.

    Args:
        most: Rows to keep at most, ≥ 2; so many columns are more than a picture can show.

    Example:
        >>> history = History(most=3)
        >>> for step in range(4):
        ...     history.add(step, torch.tensor([float(step)]))
        >>> history.table()[0]
        tensor([0, 2, 3])
    """

    def __init__(self, most: int = 256) -> None:
        self.most = most
        self._steps: list[int] = []
        self._rows: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, values: Tensor) -> None:
        """Add a row, shape (L,); L may change from row to row."""
        if len(self) >= self.most:
            self._steps, self._rows = self._steps[::2], self._rows[::2]
        self._steps.append(step)
        self._rows.append(values.detach().to("cpu", torch.float64).clone())

    def table(self) -> tuple[Tensor, Tensor]:
        """Return the steps, shape (T,), and the rows, shape (T, L): NaN where a row has fewer layers than others."""
        width = max(map(len, self._rows), default=0)
        rows = [torch.nn.functional.pad(row, (0, width - len(row)), value=torch.nan) for row in self._rows]
        return torch.tensor(self._steps, dtype=torch.int64), torch.stack(rows) if rows else torch.zeros(0, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return plain tensors."""
        steps, rows = self.table()
        return {"steps": steps, "rows": rows}

    @classmethod
    def of(cls, state: dict[str, Any]) -> History:
        """Return the history of a state."""
        history = cls()
        for step, row in zip(state["steps"].tolist(), state["rows"], strict=True):
            history.add(step, row)
        return history
