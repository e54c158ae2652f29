"""Networks that train with weights and activations of 4 bits, as in the papers' last tables."""
