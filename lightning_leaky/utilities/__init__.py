"""Tools for every package."""
