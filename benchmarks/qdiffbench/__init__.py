"""Does the benchmark tell the truth? Its numbers on images of which the answer is known."""
