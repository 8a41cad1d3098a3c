"""Times and amounts of memory in words, for announcements and progress."""

from __future__ import annotations

__all__ = ["memory_text", "time_text"]


def time_text(seconds: float) -> str:
    """``119 s``, ``2 min``, ``2.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 120 * 60 else f"{seconds / 3600:.1f} h"


def memory_text(count: float) -> str:
    """``999 MB``, ``1.5 GB``, of bytes."""
    return f"{count / 1e9:.1f} GB" if count > 1e9 else f"{count / 1e6:.0f} MB"
