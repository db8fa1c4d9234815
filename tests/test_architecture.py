"""Who may import whom, where heavy packages stay, and how large things may be: read from the code of the package."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest

from docs.rooms import PICTURE, picture
from tests.rooms import FILES, GROUPS, PACKAGE, ROOT, imports_of, read_rooms, room_of, rooms_in, syntax_of

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
AT_THE_ROOT = {"__init__.py", "module.py", "data.py", "cli.py", "py.typed"}
LINES_OF_A_FUNCTION, LINES_OF_A_MODULE, ARGUMENTS_OF_A_CONSTRUCTOR = 45, 300, 8

Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_every_room_is_in_a_group():
    assert set(read_rooms()) == set(chain(*GROUPS))


def test_rooms_import_from_groups_before_theirs():
    """So there is no circle either."""
    group_of = {room: number for number, group in enumerate(GROUPS) for room in group}
    backwards = [
        f"{name_of(file)} imports {other}"
        for name, room in read_rooms().items()
        for file in room.files
        for other in rooms_in(imports_of(file)) - {name}
        if group_of[other] >= group_of[name]
    ]
    assert not backwards, "\n".join(backwards)


def test_the_picture_shows_the_imports():
    """Those that it draws no arrow for, too: the title of a box names all."""
    if not PICTURE.parent.exists():
        pytest.skip("a source archive holds no pictures")
    is_new = PICTURE.exists() and PICTURE.read_text(encoding="utf-8") == picture(read_rooms())
    assert is_new, "imports between rooms have changed: run `python -m docs.rooms` and look at docs/images/rooms.svg"


def test_the_page_has_a_row_for_each_room():
    page = (PICTURE.parent.parent / "design.md").read_text(encoding="utf-8")
    rooms = read_rooms()
    assert re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE) == [rooms[name].label for name in chain(*GROUPS)]


def test_heavy_packages_stay_at_home():
    """What is imported for types only loads nothing."""
    for file in FILES:
        roots = {name.split(".")[0] for name in imports_of(file, type_checking=False)}
        for package, homes in HOMES.items():
            assert package not in roots or room_of(file) in homes, f"{file} imports {package}"


def test_functions_need_torch_only():
    for file in (file for file in FILES if room_of(file) == "functional"):
        roots = {name.split(".")[0] for name in imports_of(file)}
        assert roots - set(sys.stdlib_module_names) <= {"torch", PACKAGE}, file


def test_nothing_prints():
    for file in FILES:
        calls = [node for node in ast.walk(syntax_of(file)) if isinstance(node, ast.Call)]
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


def test_modules_lie_in_rooms():
    assert {path.name for path in ROOT.iterdir() if path.is_file()} == AT_THE_ROOT


def test_modules_are_short():
    lines = ((name_of(file), len(file.read_text(encoding="utf-8").splitlines())) for file in FILES)
    too_long = above(LINES_OF_A_MODULE, lines)
    assert not too_long, "\n".join(too_long)


def test_functions_are_short():
    """Signature and docstring do not count."""
    too_long = above(LINES_OF_A_FUNCTION, sizes(Function, lines_of_body))
    assert not too_long, "\n".join(too_long)


def test_constructors_take_few_arguments():
    """Settings that many share are one frozen object; its own fields do not count."""
    too_many = above(ARGUMENTS_OF_A_CONSTRUCTOR, sizes(ast.ClassDef, number_of_arguments))
    assert not too_many, "\n".join(too_many)


def name_of(file: Path) -> str:
    """Path of a file inside the package."""
    return file.relative_to(ROOT).as_posix()


def above(limit: int, sizes: Iterator[tuple[str, int]]) -> list[str]:
    """What is larger than it may be, largest first."""
    return [f"{name}: {size}" for name, size in sorted(sizes, key=lambda pair: -pair[1]) if size > limit]


def sizes(kind: type[ast.AST], size_of: Callable[[ast.AST], int]) -> Iterator[tuple[str, int]]:
    """Sizes of all functions or classes of the package, by file, line and name."""
    for file in FILES:
        for node in ast.walk(syntax_of(file)):
            if isinstance(node, kind):
                yield f"{name_of(file)}:{node.lineno} {node.name}", size_of(node)


def lines_of_body(function: Function) -> int:
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    return function.end_lineno - (first.end_lineno if has_docstring else first.lineno - 1)


def number_of_arguments(class_: ast.ClassDef) -> int:
    """Those of `__init__` without `self` and `**settings`, or the fields of a dataclass that is not frozen."""
    for node in class_.body:
        if isinstance(node, Function) and node.name == "__init__":
            taken = node.args
            return len(taken.posonlyargs + taken.args + taken.kwonlyargs) - 1 + (taken.vararg is not None)
    decorators = [ast.unparse(decorator) for decorator in class_.decorator_list]
    if any("dataclass" in decorator and "frozen=True" not in decorator for decorator in decorators):
        return sum(isinstance(node, ast.AnnAssign) for node in class_.body)
    return 0


@pytest.mark.parametrize(
    ("code", "size"),
    [
        ('def f():\n    """One\n    two."""\n    # a comment\n    a = 1\n\n    return a', 4),
        ("def f(\n    a,\n):\n    return a", 1),
        ('def f():\n    """Nothing else."""', 0),
    ],
)
def test_a_body_is_what_comes_after_signature_and_docstring(code, size):
    assert lines_of_body(ast.parse(code).body[0]) == size


@pytest.mark.parametrize(
    ("code", "size"),
    [
        ("class C:\n    def __init__(self, a, /, b, *c, d=1, **settings): ...", 4),
        ("@dataclass\nclass C:\n    a: int\n    b: int", 2),
        ("@dataclass(frozen=True)\nclass C:\n    a: int\n    b: int", 0),
        ("class C(NamedTuple):\n    a: int\n    b: int", 0),
    ],
)
def test_arguments_of_a_constructor_are_counted(code, size):
    assert number_of_arguments(ast.parse(code).body[0]) == size
