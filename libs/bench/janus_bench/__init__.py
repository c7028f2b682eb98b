"""Measurements: serving, the exchange between workers, kernels."""
