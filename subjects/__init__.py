"""Who is under test: kernels by name, each in a process of its own.

Imports the reference room only. Built-in subjects are names like anybody else's.
"""
