"""Measurements of scripts/speed.py, one topic per module.

Each module has a function `measure(options)` that returns a `Section`.
"""
