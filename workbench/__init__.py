"""The workbench: gate, clock, worker, record and command line around the backends."""
