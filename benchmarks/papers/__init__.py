"""Both papers' tables, made anew: `python -m benchmarks.papers`."""
