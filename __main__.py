"""`python -m mergd` is the `mergd` command."""

from .daemon.cli import main

if __name__ == "__main__":
    main()
