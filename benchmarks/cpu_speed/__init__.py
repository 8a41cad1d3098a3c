"""How fast full-size UNets run on a CPU: Halftone's integers against other libraries, each in its best setting.

``python -m benchmarks.cpu_speed --help`` says how it is used, docs/speed.md what it does and what it found.
"""
