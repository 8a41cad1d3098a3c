"""Quantized pipelines on disk: format, atomic save, strict load, registration with diffusers."""
