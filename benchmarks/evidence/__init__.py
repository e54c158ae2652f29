"""What docs/choosing.md and docs/evidence.md say, measured on small networks."""
