"""The parts of CoLa-Diff: auto-weight (Eqs. 8 to 10), cooperative filtering (Eq. 4), fusion, FastDPM's steps."""

import math

import pytest
import torch

from amodal.core.errors import InputError
from amodal.methods import cola_diff
from amodal.methods.cola_diff import fastdpm
from amodal.methods.cola_diff.filtering import CooperativeFilter, Match, Shrink, blocks, nearest
from amodal.methods.cola_diff.network import Bottleneck, Fusion
from amodal.methods.cola_diff.weighting import EPS, AutoWeight

# auto-weight


def test_the_formula_of_auto_weight_by_hand():
    weigh = AutoWeight(2)
    with torch.no_grad():
        weigh.mu.copy_(torch.tensor([1.0, 2.0]))
        weigh.nu.copy_(torch.tensor([0.5, -1.0]))
        weigh.o.copy_(torch.tensor([0.1, 0.3]))
    y = torch.tensor([[[[3.0, 4.0]], [[1.0, 0.0]]]])
    g = [1 * math.sqrt(25 + EPS), 2 * math.sqrt(1 + EPS)]
    length = math.sqrt(g[0] ** 2 + g[1] ** 2 + EPS)
    hat = [math.sqrt(2) * v / length for v in g]
    gain = [1 + 1 / (1 + math.exp(-(0.5 * hat[0] + 0.1))), 1 + 1 / (1 + math.exp(-(-1.0 * hat[1] + 0.3)))]
    torch.testing.assert_close(weigh(y), y * torch.tensor(gain)[None, :, None, None])


@pytest.mark.parametrize("channels", [1, 5, 32])
def test_auto_weight_has_three_numbers_a_channel_and_begins_at_one_and_a_half(channels):
    weigh = AutoWeight(channels)
    y = torch.randn(2, channels, 6, 7)
    assert sum(p.numel() for p in weigh.parameters()) == 3 * channels
    torch.testing.assert_close(weigh(y), 1.5 * y)


def test_a_channel_that_is_0_everywhere_has_a_gradient():
    weigh = AutoWeight(3)
    y = torch.zeros(1, 3, 4, 4, requires_grad=True)
    weigh(y).sum().backward()
    assert torch.isfinite(y.grad).all() and all(torch.isfinite(p.grad).all() for p in weigh.parameters())


# filtering


def stirred(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return module


@pytest.mark.parametrize("size", [(16, 16), (7, 7), (28, 20), (24, 28), (4, 4), (3, 5), (2, 2)], ids=str)
def test_the_filter_begins_as_the_identity_to_the_bit(size):
    f = torch.randn(2, 6, *size)
    assert torch.equal(CooperativeFilter(6)(f), f)


def test_every_parameter_of_the_filter_can_learn():
    net = stirred(CooperativeFilter(4))
    f = torch.randn(2, 4, 32, 32, requires_grad=True)
    net(f).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert torch.isfinite(f.grad).all()


def test_a_filter_that_thresholds_everything_removes_horizontal_and_vertical_details():
    """With thresholds beyond all values and gates of 1, H and V vanish: a pattern of such details alone becomes 0."""
    net = CooperativeFilter(1)
    for shrink in net.shrink:
        shrink.threshold.data.fill_(50.0)
        shrink.gate.data.fill_(1.0)
    stripes = torch.tensor([1.0, -1.0]).repeat(8).expand(1, 1, 16, 16).clone()
    torch.testing.assert_close(net(stripes), torch.zeros_like(stripes), atol=1e-6, rtol=0)
    checks = stripes * stripes.transpose(2, 3)  # diagonal detail: block matching's, equal blocks stay as they are
    torch.testing.assert_close(net(checks), checks)


def test_soft_threshold_is_exact():
    shrink = Shrink(1)
    shrink.gate.data.fill_(1.0)
    threshold = torch.nn.functional.softplus(shrink.threshold).item()
    h = torch.tensor([-1.0, -threshold / 2, 0.0, threshold / 2, 2.0]).reshape(1, 1, 1, 5)
    wanted = torch.sign(h) * (h.abs() - threshold).clamp(min=0)
    torch.testing.assert_close(h + shrink(h), wanted)


def test_block_matching_finds_a_planted_repeat():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(1, 3, 16, 16, generator=generator)
    a[..., 8:12, 10:14] = a[..., 0:4, 4:8]  # within the window of 12 voxels, on the grid of steps of 2
    distance, index = nearest(a.mean(1, keepdim=True), 4, 2)
    places = [(int(i) // 7 * 2, int(i) % 7 * 2) for i in index[0, 1]]  # block number 1 of the first row is at (0, 4)
    assert places == [(0, 4), (8, 10)] and distance[0, 1].tolist() == [0.0, 0.0]


def test_a_block_may_not_come_from_beyond_the_window():
    _, index = nearest(torch.zeros(1, 1, 48, 4), 4, 7)
    starts = index[0] * 2
    assert ((starts - 4 * torch.arange(12)[:, None]).abs() <= 12).all()


def test_two_bands_at_once_are_filtered_as_one_by_one():
    both, alone = stirred(Match(3, bands=2)), [Match(3) for _ in range(2)]
    a = torch.randn(2, 2, 3, 12, 8)  # two bands of two samples
    for band, match in enumerate(alone):
        match.gate.data, match.sharpness.data = both.gate.data[band, None], both.sharpness.data[band, None]
    found = both(a.flatten(0, 1)).unflatten(0, (2, 2))
    torch.testing.assert_close(found, torch.stack([match(band) for match, band in zip(alone, a)]))


def test_distances_are_those_of_the_mean_of_the_channels():
    x = torch.randn(1, 1, 8, 8)
    distance, index = nearest(x, 4, 3)
    one, many = blocks(x, 4, 4), blocks(x, 4, 2)
    wanted = (many[0, index[0]] - one[0, :, None]).square().mean(-1)
    torch.testing.assert_close(distance[0], wanted)
    assert (wanted.diff(dim=-1) >= 0).all()


def test_where_there_is_but_one_block_nothing_changes():
    match = stirred(Match(2))
    assert torch.equal(match(torch.randn(3, 2, 4, 4)), torch.zeros(3, 2, 4, 4))


def test_repeats_are_averaged_and_noise_falls():
    """A tile repeated everywhere under noise: the mean of 8 similar blocks is nearer to the truth."""
    generator = torch.Generator().manual_seed(0)
    tile = torch.randn(1, 2, 4, 4, generator=generator)
    truth = tile.repeat(1, 1, 8, 8)
    seen = truth + 0.3 * torch.randn(truth.shape, generator=generator)
    match = Match(2)
    match.gate.data.fill_(1.0)
    after = seen + match(seen)
    assert (after - truth).square().mean() < 0.45 * (seen - truth).square().mean()


def test_the_batch_does_not_matter_to_the_filter():
    net, f = stirred(CooperativeFilter(4)), torch.randn(3, 4, 20, 20)
    torch.testing.assert_close(net(f), torch.cat([net(f[i : i + 1]) for i in range(3)]))


# fusion, blocks


def test_fusion_weighs_two_receptive_fields():
    """With its attention at 0 the weight is a half: 2 (X / 2 + Y / 2) = X + Y."""
    fusion = Fusion(2, 8, 4)
    for squeeze in (fusion.near, fusion.far):
        torch.nn.init.zeros_(squeeze.norm2.weight)
        torch.nn.init.zeros_(squeeze.norm2.bias)
    x = torch.randn(2, 2, 9, 9)
    torch.testing.assert_close(fusion(x), fusion.small(x) + fusion.large(x))
    assert fusion.small.kernel_size == (5, 5) and fusion.large.kernel_size == (7, 7)


def test_the_residual_block_is_1_3_1_and_begins_as_the_identity():
    block = Bottleneck(8, 8, 4)
    assert [layer.kernel_size[0] for layer in (block.first, block.middle, block.last)] == [1, 3, 1]
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(block(x, torch.randn(1, 16)), x)


# FastDPM


def test_linear_steps_as_fastdpm_chooses_them():
    found = fastdpm.chosen(1000, 50)
    assert found[:3] == [0, 20, 40] and found[-1] == 999 and len(found) == 50
    assert found == [math.floor(i * 999 / 49) for i in range(50)]


def test_quadratic_steps_as_fastdpm_chooses_them():
    assert fastdpm.chosen(1000, 10, "quadratic") == [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]
    many = fastdpm.chosen(1000, 100, "quadratic")
    assert many == sorted(set(many)) and len(many) < 100  # the first steps fall together


def test_times_fall_from_the_last_step_to_the_clean_image():
    assert fastdpm.times(1000, 1).tolist() == [1000.0, 0.0]
    assert fastdpm.times(10, 10).tolist() == [float(t) for t in range(10, -1, -1)]


def test_more_steps_than_trained_are_refused():
    with pytest.raises(InputError, match="choose 1 to 1000"):
        fastdpm.chosen(1000, 1001)


# the published networks


def test_the_published_presets_are_the_paper_s():
    config = cola_diff.published()
    assert config.modalities == ("T1w", "T1Gd", "T2w", "FLAIR") and config.size == (224, 224) and config.steps == 50
    assert config.timesteps == 1000 and config.prediction == "noise" and config.kappa == 0
    assert config.learn.rate == 9.6e-5 and cola_diff.published("ixi").modalities == ("T1w", "T2w", "PDw")
    assert cola_diff.grid(config).size == (224, 224, 0)
    codec, x = cola_diff.networks(config)["codec"][0], cola_diff.networks(config)["prior"][1][0]
    assert codec.factor == 4 and x.shape == (1, 3, 56, 56)


def test_the_size_of_the_published_networks():
    """Snapshot: a change of the published networks must be meant."""
    counts = {}
    for name in ("published:brats", "published:ixi"):
        for key, (net, _) in cola_diff.networks(cola_diff.PRESETS[name]()).items():
            counts[name, key] = sum(p.numel() for p in net.parameters())
    assert counts == {
        ("published:brats", "codec"): 49_108_871,
        ("published:brats", "prior"): 72_782_618,
        ("published:ixi", "codec"): 49_108_871,
        ("published:ixi", "prior"): 72_778_513,
    }


def test_an_unknown_set_is_refused():
    with pytest.raises(InputError, match="brats, ixi"):
        cola_diff.published("oasis")
