"""What attention over a paged cache has to compute, and the checks that a kernel runs through."""
