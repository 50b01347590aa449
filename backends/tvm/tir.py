"""What the kernels written in TIR share, whatever they are for."""

SCHEDULED = {"tirx.is_scheduled": True, "tirx.noalias": True}
"""What marks a function that no rule is to schedule."""
LOWEST = -3.0e38
"""Below every score in float32, and finite: the difference of two is a number."""
