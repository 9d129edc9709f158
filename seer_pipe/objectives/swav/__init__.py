"""SwAV (Caron et al. 2020, arXiv 2006.09882)."""
