"""Metrics, baselines, the benchmark and reports."""
