"""HTML pages and tables of runs. The pages open from disk without a network."""
