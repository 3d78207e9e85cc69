"""Recordings of servers with known faults, made by their own engine on a virtual clock."""
