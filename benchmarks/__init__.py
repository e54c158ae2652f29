"""What the package costs, always as ratios of columns that take turns in one process."""
