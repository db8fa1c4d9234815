"""What readings mean: charts, sentences, a table for the terminal, figures."""
