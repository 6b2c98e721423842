"""One run, from config to results."""
