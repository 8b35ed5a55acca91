import math
from fractions import Fraction

import pytest
import torch

from snnreg_plugins.functional.thresholds import BINS, ActivationHistogram, local, maximum, mmse, percentile

PERCENTS = [0.1, 25.0, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0]


def exact_percentile(values, percent):
    """The smallest value that at least so many percent of the values do not exceed."""
    enough = math.ceil(Fraction(str(percent)) * values.numel() / 100)
    return float(values.flatten().sort().values[max(enough, 1) - 1])


def collect(batches, channels, **arguments):
    histogram = ActivationHistogram(channels, **arguments)
    for batch in batches:
        histogram.update(batch)
    return histogram


def activations(*shape, scale=1.0, seed=0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu()


# Batches of shape (B, C, ...).
DATA = {
    "one_batch": [activations(100, 3, 4, 4)],
    "linear": [activations(1000, 3)],
    "uneven_batches": [activations(size, 3, 5, seed=size) for size in (7, 64, 1)],
    "growing_range": [activations(50, 3, 4, scale=10.0**power, seed=power) for power in range(-6, 7)],
    "shrinking_range": [activations(50, 3, 4, scale=10.0**-power, seed=power) for power in range(7)],
    "channels_far_apart": [activations(200, 3, 4) * torch.tensor([1e-3, 1.0, 1e3]).reshape(3, 1)],
    "silent_at_first": [torch.zeros(10, 3, 4), activations(20, 3, 4)],
    "one_silent_channel": [activations(100, 3, 4) * torch.tensor([1.0, 0.0, 2.0]).reshape(3, 1)],
    "mostly_silent": [(activations(100, 3, 4) - 2).relu()],
    "one_value": [torch.full((10, 3), 0.7)],
    "all_silent": [torch.zeros(10, 3)],
}
every_data = pytest.mark.parametrize("batches", DATA.values(), ids=DATA)


def joined(batches):
    """Shape (C, number of values)."""
    return torch.cat([batch.movedim(1, 0).flatten(1) for batch in batches], dim=1)


@every_data
def test_maximum_is_exact(batches):
    histogram = collect(batches, channels=3)
    assert maximum(histogram) == joined(batches).max()
    assert torch.equal(maximum(histogram, per_channel=True), joined(batches).amax(1))


@every_data
@pytest.mark.parametrize("percent", PERCENTS)
def test_percentile_is_within_its_bound_of_the_exact_one(batches, percent):
    histogram = collect(batches, channels=3)
    values = joined(batches)
    bound = 2 / BINS * float(values.max()) * (1 + 1e-6)
    assert abs(float(percentile(histogram, percent=percent)) - exact_percentile(values, percent)) <= bound
    thresholds = percentile(histogram, per_channel=True, percent=percent)
    assert thresholds.shape == (3,)
    for threshold, channel in zip(thresholds.tolist(), values, strict=True):
        assert abs(threshold - exact_percentile(channel, percent)) <= bound
        assert threshold <= channel.max()


@pytest.mark.parametrize("percent", PERCENTS)
def test_percentile_counts_exactly(percent):
    """Bins narrower than the steps between the values: one value too many or too few shows."""
    values = torch.arange(1000.0) + 0.5
    histogram = collect([values.unsqueeze(1)], channels=1, bins=1024)
    assert histogram.range == 1024
    assert abs(percentile(histogram, percent=percent) - exact_percentile(values, percent)) < 1


def test_memory_and_counts_stay_as_they_are_while_the_range_grows():
    histogram = ActivationHistogram(channels=2, bins=64)
    for power in range(-30, 31):
        histogram.update(activations(5, 2, 3, scale=2.0**power, seed=power + 50))
        assert histogram.counts.shape == (2, 64)
        assert histogram.counts.sum() == (power + 31) * 5 * 2 * 3
        assert maximum(histogram) <= histogram.range < 2 * maximum(histogram)


@every_data
def test_order_and_split_of_the_data_make_no_difference(batches):
    one, other = collect(batches, 3), collect(batches[::-1], 3)
    single = collect([sample for batch in batches for sample in batch.split(1)], 3)
    for histogram in (other, single):
        assert histogram.range == one.range
        assert torch.equal(histogram.largest, one.largest)
        assert torch.equal(histogram.counts, one.counts)


@pytest.mark.parametrize("first", [0, 3, 40])
def test_a_bin_has_its_upper_edge(first):
    edges = torch.arange(65.0).unsqueeze(1)  # 0 is in the first bin
    histogram = collect([edges[first:], edges[:first]], 1, bins=32)
    assert histogram.range == 64
    assert histogram.counts.tolist() == [[3] + [2] * 31]


def test_values_too_small_for_a_scale_are_in_the_first_bin():
    histogram = collect([torch.tensor([[1e-42], [0.0]])], 1)
    assert histogram.counts[0, 0] == 2
    assert float(percentile(histogram, percent=100.0)) == 0
    assert maximum(histogram) > 0


@pytest.mark.parametrize("bins", [0, 3, 1000])
def test_other_numbers_of_bins_are_refused(bins):
    with pytest.raises(ValueError, match=f"`bins` to be .*, but got {bins}"):
        ActivationHistogram(1, bins)


def test_a_channel_that_is_mostly_silent_has_the_percentile_0():
    values = torch.zeros(1000, 2)
    values[:, 0] = 1.0
    values[0, 1] = 1.0
    assert percentile(collect([values], 2), per_channel=True, percent=99.0).tolist() == [1.0, 0.0]


def test_negative_activations_count_as_zeros():
    signed = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0))
    one, other = collect([signed], 3), collect([signed.relu()], 3)
    assert torch.equal(one.counts, other.counts)
    assert torch.equal(one.largest, other.largest)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_activations_of_any_precision(dtype):
    values = activations(100, 3, 4).to(dtype)
    histogram = collect([values], 3)
    assert maximum(histogram) == values.float().max()
    assert abs(float(percentile(histogram, percent=90.0)) - exact_percentile(values.float(), 90.0)) <= 2 / BINS * 5


def test_an_empty_batch_changes_nothing():
    histogram = collect([activations(10, 3)], 3)
    before = histogram.counts.clone()
    histogram.update(torch.zeros(0, 3))
    assert torch.equal(histogram.counts, before)


def test_activations_are_left_as_they_are():
    values = torch.randn(10, 3, requires_grad=True)
    before = values.detach().clone()
    histogram = collect([values], 3)
    maximum(histogram, True).fill_(-1)
    assert torch.equal(values, before)
    assert maximum(histogram) == before.max()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="finite"):
        collect([torch.tensor([[1.0, value]])], 2)


@pytest.mark.parametrize("shape", [(4, 2), (4, 6), (4, 4, 3)])
def test_other_channels_are_refused(shape):
    with pytest.raises(ValueError, match="C = 3"):
        collect([torch.zeros(shape)], 3)


@pytest.mark.parametrize("percent", [0.0, -1.0, 100.1, float("nan")])
def test_percent_out_of_range_is_refused(percent):
    with pytest.raises(ValueError, match="`percent`"):
        percentile(collect([activations(10, 3)], 3), percent=percent)


def rate_error(values, level, timesteps, potential):
    spikes = (values * timesteps / level + potential).floor().clamp(0, timesteps)
    return float((values - spikes * level / timesteps).square().mean())


@pytest.mark.parametrize("potential", [0.0, 0.5])
@pytest.mark.parametrize("timesteps", [1, 2, 4, 16])
def test_mmse_is_the_least_error_of_all_candidates(timesteps, potential):
    values = activations(400, 3, 5).double()
    found = mmse(
        collect([values], 3), per_channel=True, timesteps=timesteps, initial_potential=potential, candidates=20
    )
    layer = mmse(collect([values], 3), timesteps=timesteps, initial_potential=potential, candidates=20)
    for level, group in [*zip(found, values.unbind(1), strict=True), (layer, values)]:
        errors = [rate_error(group, group.max() * k / 20, timesteps, potential) for k in range(1, 21)]
        assert rate_error(group, float(level), timesteps, potential) <= 1.02 * min(errors)  # bins blur a little


@pytest.mark.parametrize("iterations", [1, 3, 32])
def test_local_descends_the_error_of_clipping(iterations):
    values = activations(400, 3, 5).double() * torch.tensor([1.0, 5.0, 0.2]).reshape(3, 1)
    found = local(collect([values], 3), per_channel=True, iterations=iterations)
    layer = local(collect([values], 3), iterations=iterations)
    for level, group in [*zip(found, values.unbind(1), strict=True), (layer, values)]:
        expected = 0.0
        for _ in range(iterations):
            expected = expected + 2 * float((group - expected).clamp(min=0).mean())
        assert float(level) == pytest.approx(min(expected, float(group.max())), rel=0.01)


def test_one_channel_holds_all():
    values = activations(50, 3, 4)
    one, three = collect([values], 1), collect([values], 3)
    assert torch.equal(one.counts[0], three.counts.sum(0))
    for method in (maximum, percentile, local):
        assert torch.equal(method(one), method(three))
