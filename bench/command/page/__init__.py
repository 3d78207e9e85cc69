"""A page to look at: records as one HTML file that opens anywhere, made of the parts in here."""
