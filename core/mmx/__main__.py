"""`python -m mmx`: the command, where it is not on the path."""

from mmx.cli import main

if __name__ == "__main__":
    main()
