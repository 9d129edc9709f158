"""Contrastive random walks over the patches of a video (Jabri, Owens and Efros 2020, arXiv 2006.14613)."""
