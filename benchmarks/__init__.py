"""Measure this pipeline side by side with its peers: the same rows, servers, durability and machine, within one run.

`python -m benchmarks --help` lists the options. Ratios within a run count; absolute numbers are printed with their
conditions.
"""
