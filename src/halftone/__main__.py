"""``python -m halftone``: the same as the command ``halftone``."""

from halftone.cli import main

if __name__ == "__main__":
    main()
