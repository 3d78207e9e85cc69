"""Allocators by name: ours, those of engines, and the user's."""
