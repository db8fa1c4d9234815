"""What `lightning-leaky report` and `compare` write."""

from lightning_leaky.report.comparison import Run, compare, read_run
from lightning_leaky.report.page import Report, as_html, as_json, report_on

__all__ = ["Report", "Run", "as_html", "as_json", "compare", "read_run", "report_on"]
