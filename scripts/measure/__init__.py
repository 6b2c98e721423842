"""What scripts/speed.py measures, one topic a file; each has a `measure(options)` that gives a `Section`."""
