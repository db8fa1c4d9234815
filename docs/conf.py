"""Sphinx configuration; built strictly (warnings are errors, every reference must resolve)."""

from pathlib import Path

import lightning_leaky

project = "lightning-leaky"
author = "The lightning-leaky developers"
copyright = "2026, the lightning-leaky developers"
version = release = lightning_leaky.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "lightning-leaky"
exclude_patterns = ["_build", "paper/**/*.md", "layers/**/*.md", "adapting/**/*.md"]  # tables, which pages include

# Single backticks in docstrings are code: they name arguments, quantities and classes alike.
default_role = "code"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes of records are documented once, in their class

# Types of other projects: their inventories are on the network, and a strict build must not need it.
nitpick_ignore_regex = [
    (r"py:.*", r"lightning_leaky\..*\._[\w.]+"),  # private bases
    (r"py:.*", r"lightning_leaky\.utilities\..*"),  # bases that no page is about
    (r"py:.*", r"lightning_leaky\.(models\.leaky_residual|dropping\.drop)\.Model"),  # type variables
    (r"py:.*", r"(torch|lightning|torchmetrics|matplotlib|collections|typing|numpy|pathlib|pytorch_lightning)\..*"),
    (
        r"py:.*",
        r"(optional|MapKind|LossReduction|PaddingMask|StateChoice|PathChoice|Form|LayerChoice|Model|Cost|Order|Action|conditions\.Test|callable|Callable|Any|Literal|Sequence|Tensor|nn\.Module|Optimizer|Metric|Axes|Figure|SubFigure|Console|Scale)",
    ),
]

# A source archive holds no pictures.
if not Path(__file__).with_name("images").exists():
    suppress_warnings = ["image.not_readable"]
