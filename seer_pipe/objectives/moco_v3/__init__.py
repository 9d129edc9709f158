"""MoCo v3 (Chen, Xie and He 2021, arXiv 2104.02057)."""
