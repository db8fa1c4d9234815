"""A bounded record of layers over training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class History:
    """Rows of one number per layer by step; it drops every second row once they are too many to draw."""

    def __init__(self, most: int = 256) -> None:
        self.most = most
        self._steps: list[int] = []
        self._rows: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, values: Tensor) -> None:
        """Add a row, shape (L,); L may change."""
        if len(self) >= self.most:
            self._steps, self._rows = self._steps[::2], self._rows[::2]
        self._steps.append(step)
        self._rows.append(values.detach().to("cpu", torch.float64).clone())

    def table(self) -> tuple[Tensor, Tensor]:
        """Return steps, shape (T,), and rows, shape (T, L), padded with NaN."""
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
