"""`make gpu`: builds, tests and times the CUDA kernels on this machine's GPU, and loses no result."""
