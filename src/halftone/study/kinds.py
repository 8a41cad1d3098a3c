"""Kinds of tables."""

from __future__ import annotations

from typing import Literal

__all__ = ["TableKind"]

#: What the page draws of a table besides its numbers: values against cost; bars; a curve over the share of relaxed
#: steps; a curve over the number of calibration prompts.
TableKind = Literal["comparison", "ablation", "relaxed share", "calibration prompts"]
