"""Rows through time: calibrated noise, verdicts against earlier rows, histories, and pytest's benchmarks.

`commands` is what can be typed, `verdict` has the rules, `against` applies them, `session` is pytest's part.
"""
