"""Runs a command as a process of its own and prints what it cost: python launch.py LOG COMMAND...

A process's peak memory begins with that of the process that started it, so what starts it must be small: no torch here.
"""

import json
import os
import sys
import time


def main() -> None:
    """Run it, with its output in the file LOG, and print one line of JSON."""
    log, *words = sys.argv[1:]
    began = time.monotonic()
    child = os.fork()
    if not child:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execvp(words[0], words)
    _, status, used = os.wait4(child, 0)
    wall = time.monotonic() - began
    cost = {"cpu": used.ru_utime + used.ru_stime, "wall": wall, "rss": used.ru_maxrss * 1024 / 1e6}
    print(json.dumps({"code": os.waitstatus_to_exitcode(status), "cost": cost}))


if __name__ == "__main__":
    main()
