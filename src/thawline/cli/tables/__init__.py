"""What commands show on a terminal, mostly as tables by rich; they get values, and compute nothing."""
