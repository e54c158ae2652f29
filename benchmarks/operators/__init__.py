"""The operators, one call at a time, beside their reference and PyTorch."""
