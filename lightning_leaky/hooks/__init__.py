"""Forward hooks that keep what passes through layers, in eager and compiled code."""
