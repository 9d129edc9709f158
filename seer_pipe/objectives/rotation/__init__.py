"""Rotation, RotNet (Gidaris et al. 2018, arXiv 1803.07728)."""
