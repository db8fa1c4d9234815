"""What is checked inside of the environment that holds the wheel, in one process: `python -I inside.py RESULT.json`.

The file says what is wrong, by the name of the check; a list is empty where nothing is.
"""

import importlib.metadata
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def no_side_effects() -> list[str]:
    """Side effects of the import; first, for nothing may have imported the package before."""
    import side_effects

    return side_effects.side_effects("lightning_leaky")


def installed() -> list[str]:
    """Whether the package that is imported is the one that is installed, and says its own version."""
    import lightning_leaky

    file, version = Path(lightning_leaky.__file__), importlib.metadata.version("lightning-leaky")
    wrong = [] if file.is_relative_to(sys.prefix) else [f"{file} is not in {sys.prefix}"]
    if lightning_leaky.__version__ != version:
        wrong.append(f"`__version__` is {lightning_leaky.__version__}, the installed version {version}")
    return wrong


def fit() -> list[str]:
    """Features that do not do what they should without an extra."""
    import user

    return [name for name, is_right in user.checks().items() if not is_right]


def messages() -> list[str]:
    """Messages that do not name the missing extra. It runs last because it hides a package."""
    import missing

    return missing.complaints(hidden=["jinja2"])  # comes with torch, which does not promise it


CHECKS: dict[str, Callable[[], list[str]]] = {
    "no side effects of the import": no_side_effects,
    "installed package": installed,
    "a fit without extras": fit,
    "messages name the missing extras": messages,
}


def found(check: Callable[[], list[str]]) -> list[str]:
    """What a check finds wrong; an error of its own is one line of that."""
    try:
        return check()
    except Exception as error:
        traceback.print_exc()
        return [f"{type(error).__name__}: {error}"]


if __name__ == "__main__":
    # The scripts beside this one: -I leaves them out, and the rest of the checkout with them.
    sys.path.append(str(Path(__file__).parent))
    Path(sys.argv[1]).write_text(json.dumps({name: found(check) for name, check in CHECKS.items()}), encoding="utf-8")
