"""Instance discrimination with a memory bank (Wu et al. 2018, arXiv 1805.01978)."""
