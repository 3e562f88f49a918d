"""Terminal output of commands, mostly rich tables; they format values and compute nothing."""
