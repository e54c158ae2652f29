"""What docs/choosing.md and docs/measurements.md say, measured on small networks."""
