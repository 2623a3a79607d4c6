"""The shape of the product: files, calls on one path, wired objects, names and docstrings, each beside its limit.

`make shape` prints the table. `static` counts in the source, `walks` at run time; each function defines its figure.
"""
