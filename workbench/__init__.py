"""The workbench: gate, clock, worker, record and command line around the backends."""

__version__ = "0.1.0"
