"""The rooms of the package: their order, who imports whom, and how large they are. Read from the code, not imported.

A room is a folder of `lightning_leaky/`, or one of the modules beside them. The tests of the architecture read it here,
and so does the picture of the docs (`python -m docs.rooms`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

PACKAGE = "lightning_leaky"

# A room may import only from groups before its own. An ordered list is shorter than a table of who may import whom, and
# just as strict: the picture names every import, so a new one that the order allows still shows in a diff.
GROUPS = (
    ("functional", "utilities", "plotting"),
    ("hooks", "metrics"),
    ("paths",),
    ("reading",),
    ("refining", "dropping"),
    ("models", "optim", "explain"),
    ("report", "callbacks"),
    ("module", "data"),
    ("cli",),
)


class Room(NamedTuple):
    """A folder or module of the package."""

    name: str
    files: tuple[Path, ...]
    imports: frozenset[str]
    """Other rooms that it imports, inside functions and for types too."""

    @property
    def label(self) -> str:
        """`name/` for a folder, `name.py` for a module."""
        return f"{self.name}.py" if (ROOT / f"{self.name}.py").exists() else f"{self.name}/"

    @property
    def lines(self) -> int:
        """Lines of its files, blank ones and comments too."""
        return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in self.files)


def package_root() -> Path:
    """Folder of the package that Python would import."""
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


ROOT = package_root()
FILES = sorted(ROOT.rglob("*.py"))


def syntax_of(file: Path) -> ast.Module:
    """The parsed code of a file."""
    return ast.parse(file.read_text(encoding="utf-8"))


def room_of(file: Path) -> str:
    """Name of the room that a file belongs to; `__init__` for that of the package itself."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(file: Path, type_checking: bool = True) -> set[str]:
    """Names of the modules that a file imports, with or without those under `if TYPE_CHECKING`."""
    tree = syntax_of(file)
    hidden = set() if type_checking else {id(node) for block in blocks_for_types(tree) for node in ast.walk(block)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def blocks_for_types(tree: ast.Module) -> Iterator[ast.If]:
    """The blocks `if TYPE_CHECKING`."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")


def rooms_in(names: set[str]) -> set[str]:
    """Rooms among names of modules."""
    parts = [name.split(".") for name in names]
    return {room for package, room, *_ in (part for part in parts if len(part) > 1) if package == PACKAGE}


def read_rooms() -> dict[str, Room]:
    """All rooms by name, in alphabetical order."""
    rooms = {}
    for name, group in groupby(sorted(FILES, key=room_of), key=room_of):
        files = tuple(group)
        imports = rooms_in(set().union(*map(imports_of, files))) - {name}
        rooms[name] = Room(name, files, frozenset(imports))
    del rooms["__init__"]  # it shows what users need of all rooms
    return rooms
