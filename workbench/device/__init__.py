"""The machine that is measured: who it is, what it can do at most, and what is seen of it meanwhile."""
