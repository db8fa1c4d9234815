"""Forward hooks: they keep what passes through layers, in eager and in compiled code."""
