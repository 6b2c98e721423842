"""Training runs, from config to results."""
