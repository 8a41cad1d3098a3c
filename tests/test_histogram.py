"""The logarithmic histogram counts every value in a bin whose edges hold it."""

import torch

from halftone.histogram import NUM_BINS, LogHistogram


def test_every_value_lies_within_its_bin():
    magnitudes = torch.cat([torch.logspace(-9, 6, 301), torch.tensor([0.0, 2.0**-24, 1.0, 65536.0])])
    for value in torch.cat([magnitudes, -magnitudes]).tolist():
        histogram = LogHistogram()
        histogram.add(torch.tensor([value, -1e9, 1e9]))
        lower, upper, counts = histogram.filled_bins()
        assert counts.sum() == 3
        assert any(a <= torch.tensor(value) <= b for a, b in zip(lower, upper, strict=True)), value


def test_counts_are_complete_and_ordered():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    histogram = LogHistogram()
    histogram.add(values)
    lower, upper, _ = histogram.filled_bins()
    assert histogram.counts.sum() == 1000 and len(histogram.counts) == NUM_BINS
    assert (lower.diff() > 0).all() and (upper.diff() > 0).all()
    assert (lower[0].item(), upper[-1].item()) == (values.min().item(), values.max().item())


def test_bins_are_narrow():
    histogram = LogHistogram()
    histogram.add(torch.tensor([0.5, 1.3, 2.0, 3.0]))
    lower, upper, _ = histogram.filled_bins()
    assert ((upper - lower) <= lower.abs() / 128 * 1.01).all()
