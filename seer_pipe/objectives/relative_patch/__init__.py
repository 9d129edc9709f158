"""Relative patch location (Doersch et al. 2015, arXiv 1505.05192)."""
