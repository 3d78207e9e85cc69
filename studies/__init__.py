"""Run once, by hand: where constants come from, and how well a method works."""
