"""Contrastive predictive coding, CPC (van den Oord et al. 2018, arXiv 1807.03748; version 2: arXiv 1905.09272)."""
