"""The rows that the records know, in the cards of `docs/quantities.md`.

    python -m docs.cards

A card whose heading is the title of a record takes its rows `key`, `unit` and `says` from the record; everything else
is written by hand. A record without a card gets one at the end of the page, whose other rows wait to be filled in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lightning_leaky.metrics import QUANTITIES, Quantity
from lightning_leaky.metrics.records import STEP_SIZE

PAGE = Path(__file__).with_name("quantities.md")
RECORDS = (*QUANTITIES.values(), STEP_SIZE)
ROWS = ("key", "formula", "unit", "range", "says", "cost", "source")


def heading_of(record: Quantity) -> str:
    """Heading of the card of a record: its title."""
    return record.title[0].upper() + record.title[1:]


def known_rows(record: Quantity) -> dict[str, str]:
    """The rows of a card that its record knows, by name."""
    ends = ("layer_*", *(summary.end for summary in record.summaries))
    return {
        "key": ", ".join(f"`{record.key}/{end}`" for end in ends),
        "unit": "none" if record.unit == "–" else record.unit,
        "says": record.says,
    }


def filled(card: str, record: Quantity) -> str:
    """A card with the rows that its record knows."""
    rows = {name: f"| {name} | {text} |" for name, text in known_rows(record).items()}
    return re.sub(r"^\| (\w+) \|.*$", lambda row: rows.get(row[1], row[0]), card, flags=re.MULTILINE)


def empty_card(record: Quantity) -> str:
    """A card to fill in."""
    rows = "".join(f"| {name} | |\n" for name in ROWS)
    return f"\n## {heading_of(record)}\n\n| | |\n| --- | --- |\n{rows}\n*Pitfalls.*\n"


def with_cards(page: str, records: Sequence[Quantity] = RECORDS) -> str:
    """The page as it should be: with the rows that the records know, and a card for each record."""
    start, *cards = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    found = {card.partition("\n")[0].removeprefix("## "): card for card in cards}
    for record in records:
        heading = heading_of(record)
        found[heading] = filled(found.get(heading, empty_card(record)), record)
    return start + "".join(found.values())


def main() -> None:
    """Write the page."""
    PAGE.write_text(with_cards(PAGE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
