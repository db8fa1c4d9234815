"""Who may import whom: data flow one way, and heavy packages stay where they are needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_leaky

PACKAGE = "lightning_leaky"
ROOT = Path(lightning_leaky.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# What each room may import of the package, besides itself: from those before it, and never in a circle.
ALLOWED = {
    "functional": set(),
    "utilities": set(),
    "plotting": set(),
    "hooks": {"functional", "utilities"},
    "metrics": {"functional", "utilities", "plotting"},
    "paths": {"functional", "utilities", "hooks"},
    "reading": {"functional", "utilities", "hooks", "metrics", "paths"},
    "refining": {"functional", "utilities", "hooks", "paths"},
    "models": {"functional", "utilities", "hooks", "paths", "refining"},
    "optim": {"functional", "utilities", "hooks", "paths", "reading", "refining"},
    "explain": {"functional", "plotting", "metrics", "reading"},
    "report": {"plotting", "metrics", "paths", "reading", "explain"},
    "callbacks": {
        "functional",
        "utilities",
        "plotting",
        "metrics",
        "paths",
        "reading",
        "refining",
        "optim",
        "explain",
    },
    "module": {"functional", "utilities", "metrics", "models"},
    "data": set(),
    "cli": {"utilities", "paths", "reading", "explain", "report", "module"},
}
# The only places of heavy packages.
HOMES = {
    "torchmetrics": {"metrics", "module"},
    "lightning": {"callbacks", "module", "data", "cli"},
    "matplotlib": {"plotting"},
    "mlxtend": {"data"},
    "sklearn": set(),
    "jsonargparse": {"cli"},
    "numpy": set(),
    "jinja2": {"report"},
    "rich": {"explain"},
}


def part_of(file: Path) -> str:
    """The sub-package or module that a file belongs to."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(file: Path, type_checking: bool = True) -> set[str]:
    """Names of the modules that a file imports, with or without those under `if TYPE_CHECKING`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    hidden = set()
    if not type_checking:
        blocks = [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ]
        hidden = {id(node) for block in blocks for node in ast.walk(block)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def own_parts(file: Path) -> set[str]:
    """Parts of the package that a file imports."""
    names = [name.split(".") for name in imports_of(file)]
    return {parts[1] for parts in names if parts[0] == PACKAGE and len(parts) > 1} - {part_of(file)}


def test_every_part_has_a_rule():
    assert {part_of(file) for file in FILES} - {"__init__"} == set(ALLOWED)


def test_rooms_are_in_order():
    """Each room imports from rooms above it in the table only, so that there is no circle."""
    rooms = list(ALLOWED)
    for room, others in ALLOWED.items():
        assert all(rooms.index(other) < rooms.index(room) for other in others), room


def test_imports_follow_the_flow_of_data():
    extra = {file: own_parts(file) - ALLOWED[part_of(file)] for file in FILES if part_of(file) != "__init__"}
    assert {file: parts for file, parts in extra.items() if parts} == {}


def test_heavy_packages_stay_at_home():
    for file in FILES:
        roots = {name.split(".")[0] for name in imports_of(file, type_checking=file.name != "base.py")}
        for package, homes in HOMES.items():
            assert package not in roots or part_of(file) in homes, f"{file} imports {package}"


def test_functions_need_torch_only():
    for file in (file for file in FILES if part_of(file) == "functional"):
        roots = {name.split(".")[0] for name in imports_of(file)}
        assert roots - set(sys.stdlib_module_names) <= {"torch", PACKAGE}, file


def test_nothing_prints():
    for file in FILES:
        calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        printing = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert not printing, file


@pytest.mark.slow
def test_importing_the_package_loads_nothing_optional():
    """Beyond what Lightning and torchmetrics load by themselves."""
    code = (
        "import sys, lightning.pytorch, torchmetrics; before = set(sys.modules); "
        f"import {PACKAGE}; print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    loaded = run.stdout.split()
    extra = {name.split(".")[0] for name in loaded}
    assert not extra & {"matplotlib", "mlxtend", "sklearn", "jsonargparse", "tensorboard", "rich", "pandas"}
    assert PACKAGE in extra
    assert not [name for name in loaded if "refin" in name]
