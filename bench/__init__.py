"""Latency benchmarks and side-by-side comparisons. Nothing in the package needs them."""
