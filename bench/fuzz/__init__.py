"""Fuzzing allocators: draw programs, run them, make what is found small, and keep it.

- `campaign`: the search, within a budget.
- `minimise`: fewer and simpler steps.
- `databases`: where Hypothesis keeps the examples that failed.
- `record`: what is kept of a campaign and of each finding, as JSON.
- `pytest_file`: a finding as a test.
"""
