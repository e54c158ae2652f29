"""``python -m benchmarks.demo``: SGD, SAM, AUSAM and vSAM on handwritten digits, within two minutes."""
