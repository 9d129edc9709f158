"""SimSiam (Chen and He 2021, arXiv 2011.10566)."""
