"""SeLa-v2 (Asano et al. 2020, arXiv 1911.05371; version 2 in Caron et al. 2020, arXiv 2006.09882, appendix)."""
