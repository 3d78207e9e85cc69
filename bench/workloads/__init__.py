"""Request streams: readers of public traces, and streams drawn from published quantiles."""
