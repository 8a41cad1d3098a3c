"""``python -m halftone.native``: builds the library anew."""

import sys

from halftone.native.build import build, library_path

if __name__ == "__main__":
    reason = build()
    if reason is not None:
        sys.exit(f"The native library was not built: {reason}")
    print(f"built {library_path()}")
