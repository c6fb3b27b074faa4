import sys

from faults.children import with_shim
from faults.kills import kill
from faults.points import *

names = sys.argv[2:]
with with_shim("run_") as f:
    for n in names:
        print(kill_at_calls(n, f, int(sys.argv[1]), 3), flush=True)
    if not names:
        print(kill(f, int(sys.argv[1]), 5))
