"""Streaming self-supervised pretraining on uncurated web images."""

__version__ = "0.1.0"
