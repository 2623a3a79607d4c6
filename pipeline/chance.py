"""Draw at random: one generator of this process, which nobody else draws from.

An application that has seeded Python's own generator, or a tool that watches it, meets no draw of ours.
"""

from __future__ import annotations

import os
import random

chance = random.Random()
# as Python's own: a forked child goes its own way
os.register_at_fork(after_in_child=chance.seed)
