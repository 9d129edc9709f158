"""Supervised training on one class an image: what other objectives are measured by."""
