"""Experiments: a paper's claim made small, methods compared against their placebos."""
