"""Jigsaw puzzles (Noroozi and Favaro 2016, arXiv 1603.09246)."""
