"""Published figures that the simulators have to meet, and what they come to here.

Each is a module with a function that runs the simulation and returns a `Figure`. `FIGURES` in
`bench.waste.figures.catalogue` has them by the names that `pagedbench waste --figure` takes.
"""
