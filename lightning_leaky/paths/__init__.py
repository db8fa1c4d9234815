"""Layers by name, of a leaky path, or found in the first batch."""
