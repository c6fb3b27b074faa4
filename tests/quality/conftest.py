"""The benchmark of quality is run from its folder; here, too, it is found by its name."""

import sys

import repository

if (folder := str(repository.ROOT / "benchmarks")) not in sys.path:
    sys.path.append(folder)
