"""A bounded record of a quantity of every layer over training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class History:
    """Rows of one number a layer with the step of each; every second one is dropped when there are too many to draw."""

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
        rows = self._rows or [torch.zeros(0)]
        table = pad_sequence(rows, batch_first=True, padding_value=torch.nan)[: len(self)]
        return torch.tensor(self._steps, dtype=torch.int64), table

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
