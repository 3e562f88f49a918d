"""Terminal output of commands, mostly tables by rich; they format values and compute nothing."""
