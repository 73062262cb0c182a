"""Metrics for the `evaluate` library, one folder each: `evaluate.load("training/metrics/pesq")`."""
