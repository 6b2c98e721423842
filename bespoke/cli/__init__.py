"""The commands, and all that Hydra does before and after a run."""
