"""``python -m ausam_ext.demo``: SGD, SAM, AUSAM and vSAM on handwritten digits, in two minutes."""
