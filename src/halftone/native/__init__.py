"""Halftone's own C++ kernels: ``src/*.cpp``, how they are built, and how they are called."""

from halftone.native.library import library, unavailable

__all__ = ["library", "unavailable"]
