"""CMA: AVID with positives that pictures and sounds agree on (Morgado et al. 2021, arXiv 2004.12943, section 4)."""
