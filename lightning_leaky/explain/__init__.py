"""What readings mean, in charts, words and figures."""
