"""SimCLR (Chen et al. 2020, arXiv 2002.05709; version 2: arXiv 2006.10029)."""
