"""What readings mean: cards, charts, sentences, a table for the terminal, figures."""
