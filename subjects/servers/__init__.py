"""Servers of engines, without a model: their scheduler and cache manager on a virtual clock."""
