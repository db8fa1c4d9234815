"""Pages of HTML that need no network."""

from __future__ import annotations

from typing import Any


def render(template: str, **values: Any) -> str:
    """Fill a template of this package.

    Args:
        template: Its file name in ``report/templates``.
        **values: What it shows; escaped where it is text.

    Raises:
        ModuleNotFoundError: If jinja2 is missing.
    """
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
