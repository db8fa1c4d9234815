"""The figures of arXiv 2405.17573 with error bars, and what its reviewers asked for: ``python -m examples.paper``."""
