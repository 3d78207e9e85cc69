"""The regression gate: base against head, counted first, timed in pairs second.

This package comes from the head for both sides; all other rooms come from each side's own tree.
"""
