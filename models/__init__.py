"""The one decoder model: its configuration, weights, definition and analytic work. Imports no framework."""
