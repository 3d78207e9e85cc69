"""What is true: attention problems, their float64 answers, and how far a right answer may be off.

Nothing here imports another room. Torch on the CPU is enough.
"""
