"""Human pose estimation with SimCC on MPII, as in AUSAM's Table 4."""
