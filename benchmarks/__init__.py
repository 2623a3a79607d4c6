"""Side by side with its peers: the same rows, servers, durability and machine, within one run.

`python -m benchmarks --help`. Ratios within a run are what counts; absolute numbers are printed with their conditions.
"""
