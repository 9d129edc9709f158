"""Patches tracked in videos, by ranking (Wang and Gupta 2015, arXiv 1505.00687)."""
