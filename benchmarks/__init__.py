"""Measurements of speed and cost, every ratio taken in one run. Not part of the wheel; nothing here is asserted."""
