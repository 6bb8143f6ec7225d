"""Measures catraca: `python -m bench`; how and why is in docs/performance.md."""
