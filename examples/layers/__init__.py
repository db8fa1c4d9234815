"""Which layers can go? Scores of blocks, and what taking the blocks out costs."""
