"""Pages of HTML that need no network."""

from __future__ import annotations

from typing import Any


def render(template: str, **values: Any) -> str:
    """Fill a template of this package, by its file name, with values; they are escaped where they are text."""
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Reports need jinja2: pip install 'lightning-leaky[report]'.") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lightning_leaky", "report/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page: str = environment.get_template(template).render(**values)
    return page
