"""Planted kernel bugs against the tolerance rules of released harnesses.

    python -m studies.tolerance_rules

writes the tables of docs/tolerance-rules.md anew, between its marks, in five to six minutes of one
core. Every rule judges the same answers; the figures are the same in every run on one machine. The
bugs are those of the tests, so a checkout is needed.
"""
