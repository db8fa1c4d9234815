"""Changes of dictionaries that can be taken back."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any


class Journal(ExitStack):
    """Takes its changes back when left, in reverse order, unless `keep` was called; attributes are changed in `vars`.

    Example:
        >>> settings = {"depth": 4}
        >>> with Journal() as journal:
        ...     journal.put(settings, "depth", 3)
        >>> settings
        {'depth': 4}
    """

    def put(self, place: dict[str, Any], key: str, value: Any) -> None:
        """Change the value of a key that is there."""
        self.callback(place.__setitem__, key, place[key])
        place[key] = value

    def refill(self, place: dict[str, Any], content: Mapping[str, Any]) -> None:
        """Change all that a dictionary holds, the order included."""
        old = dict(place)
        self.callback(place.update, old)
        self.callback(place.clear)
        place.clear()
        place.update(content)

    def keep(self) -> None:
        """Let the changes stand."""
        self.pop_all()
