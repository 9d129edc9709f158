"""Optimisers and schedules that mean the same at every batch size, world size and sharding."""
