"""Command line interface, and Hydra's start and end of runs and sweeps."""
