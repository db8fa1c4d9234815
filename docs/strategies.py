"""The table of strategies in `docs/multi_gpu.md`.

    python -m docs.strategies

It is made from `lightning_leaky.callbacks.strategies.STRATEGIES`.
"""

from __future__ import annotations

import re
from pathlib import Path

from lightning_leaky.callbacks.strategies import STRATEGIES, StrategySupport

PAGE = Path(__file__).with_name("multi_gpu.md")
_START, _END = "<!-- strategies -->\n", "<!-- end of strategies -->\n"


def row_of(support: StrategySupport) -> str:
    """A row of the table."""
    names = ", ".join(f"`{name}`" for name in support.names)
    strategy = f"{names}: {support.option}" if support.option else names
    return f"| {strategy} | {support.state} | {support.how} | {support.limits} |\n"


def with_table(page: str) -> str:
    """The page as it should be."""
    table = "| strategy | state | how, or why not | what does not work |\n| --- | --- | --- | --- |\n"
    table += "".join(map(row_of, STRATEGIES))
    found, count = re.subn(f"{_START}.*{_END}", lambda _: f"{_START}\n{table}\n{_END}", page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"`page` must hold one table of strategies, got {count}.")
    return found


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
