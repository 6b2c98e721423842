"""Pages and tables of runs, which open from disk without network."""
