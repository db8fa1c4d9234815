"""From forward hooks to `Readings`, without a trainer."""
