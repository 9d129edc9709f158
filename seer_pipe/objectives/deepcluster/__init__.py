"""DeepCluster-v2 (Caron et al. 2020, arXiv 2006.09882, appendix; after arXiv 1807.05520)."""
