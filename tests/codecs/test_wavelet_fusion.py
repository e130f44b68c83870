"""Wavelet codecs: shapes of the paper, exact decoding in slabs, fusion that begins as the mean, scale of latents."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from amodal.codecs.wavelet_fusion import FACTOR, Stages, WaveletCodec, WaveletConfig
from amodal.core.errors import InputError
from amodal.core.rng import Rng
from amodal.nn import layout, winograd
from amodal.nn.wavelet import haar, unhaar

FUSION = WaveletConfig(widths=(8, 16), blocks=1, attention=8, head_size=8, groups=4)
FLAT = dataclasses.replace(FUSION, dims=2, subset=("LL", "LH"))
CASES = {
    "wf-sa-vae": FUSION,
    "full attention": dataclasses.replace(FUSION, pool=1),
    "wf-vae": dataclasses.replace(FUSION, attention=0),
    "wavelet vae": dataclasses.replace(FUSION, kind="wavelet", attention=0),
    "vae-gan": dataclasses.replace(FUSION, kind="plain", attention=0, widths=(4, 8, 16)),
    "2-D": FLAT,
}
EVERY = pytest.mark.parametrize("config", CASES.values(), ids=CASES)


def codec(config, dtype=torch.float32):
    """A codec whose weights are not 0."""
    torch.manual_seed(0)
    found = WaveletCodec(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in found.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return layout.convert(found, dtype)


def volume(config, n=1, size=(16, 24, 20)):
    return torch.tanh(Rng.of(0, n, "volume").normal(1, *size[: config.dims]))


@EVERY
def test_latents_have_a_quarter_of_the_size(config):
    net, x = codec(config), volume(config, 2)
    z = net.encode(x)
    assert z.shape == (2, 4, *(n // FACTOR for n in x.shape[2:])) and z.dtype == torch.float32
    assert net.decode(z).shape == x.shape


def test_the_latent_of_the_paper():
    """192 x 224 x 160 -> 4 x 48 x 56 x 40, on the meta device."""
    with torch.device("meta"):
        net = WaveletCodec(WaveletConfig())
        mean, log_variance = net.encoder(torch.empty(1, 1, 192, 224, 160))
        assert mean.shape == log_variance.shape == (1, 4, 48, 56, 40)
        assert net.decoder(mean).shape == (1, 1, 192, 224, 160)


@EVERY
def test_slabs_give_the_very_result_of_the_whole(config):
    """In double precision to 1e-12: nothing is blended, no statistic is that of a part."""
    net = codec(config, torch.float64).double()
    v, z = volume(config).double(), Rng.of(1, 1).normal(4, *(4, 6, 5)[: config.dims]).double()
    for budget in (1, 2000, 1 << 30):
        assert torch.allclose(net.decoder(z, budget), net.decoder(z), atol=1e-12)
        for part, whole in zip(net.encoder(v, budget), net.encoder(v)):
            assert torch.allclose(part, whole, atol=1e-12)


@pytest.mark.parametrize("short", [False, True])
def test_slabs_do_not_show(short, monkeypatch):
    """In bf16, as volumes are decoded: the same bits for one plane at a time and for all; by Winograd's tiles, which
    lie elsewhere in another slab, but for what bf16 rounds."""
    if not short:
        monkeypatch.setattr(winograd, "compiled", lambda way, kind: None)  # (its layers are too narrow for torch's)
    net, z = codec(FUSION, torch.bfloat16), Rng.of(1, 1).normal(4, 6, 6, 4)
    found = [net.decode(z, budget) for budget in (1, 3000, 1 << 30)]
    for other in found[1:]:
        far = float((found[0] - other).std() / found[0].std())
        assert far <= (0.003 if short else 0), far


@EVERY
def test_a_sample_does_not_depend_on_its_batch(config):
    net, x = codec(config), volume(config, 3)
    z = net.encode(x)
    assert torch.equal(net.encode(x[1:2]), z[1:2]) and torch.equal(net.decode(z)[2:], net.decode(z[2:]))


def test_sizes_that_4_does_not_divide_are_padded():
    net, x = codec(FUSION), volume(FUSION, size=(14, 9, 18))
    assert net.encode(x).shape[2:] == (4, 3, 5)
    assert net.decode(net.encode(x)).shape[2:] == (16, 12, 20)


def test_fusion_begins_as_the_mean_of_both_stages(monkeypatch):
    """W^-1 of c1 with the subset replaced by the mean of c1's own and W^-1(c2) (section 2.5.2)."""
    monkeypatch.setattr(winograd, "compiled", lambda way, kind: None)  # (hooks see layers that are called)
    torch.manual_seed(0)
    decoder, z = WaveletCodec(FUSION).eval().decoder, torch.randn(1, 4, 4, 4, 4)
    seen = {}
    for name in ("coarse", "fine"):
        getattr(decoder, name).register_forward_hook(lambda m, i, o, name=name: seen.update({name: o}))
    with torch.no_grad():
        out = decoder(z)
        c1 = seen["fine"].clone()
        c1[:, :4] = (c1[:, :4] + unhaar(seen["coarse"])) / 2
        assert torch.allclose(out, unhaar(c1), atol=1e-6)


def test_the_subset_is_a_setting():
    config = dataclasses.replace(FUSION, subset=("LLL",))
    assert WaveletCodec(config).decoder.coarse.out_channels == 8
    assert WaveletCodec(FUSION).decoder.coarse.out_channels == 32  # four bands, eight each
    with pytest.raises(InputError, match="LLL, LLH"):
        dataclasses.replace(FUSION, subset=("LL",))


def test_attention_is_over_every_voxel():
    """With attention a change in one corner reaches the far one; the tokens number 1 / 64 of the voxels."""
    config = dataclasses.replace(FUSION, pool=1)
    block = codec(config).encoder.attention
    x = Rng.of(0, 1).normal(16, 4, 6, 5)
    other = x.clone()
    other[..., 0, 0, 0] += 1
    assert (block(x) - block(other))[..., -1, -1, -1].abs().max() > 0
    fresh = WaveletCodec(config).encoder.attention
    assert torch.equal(fresh(x), x)  # and it begins as the identity


def test_the_background_has_no_coefficients():
    """v = (x + 1) / 2: of the background -1 only biases are left, alike everywhere inside."""
    with torch.no_grad():
        assert haar((-torch.ones(1, 1, 8, 8, 8) + 1) / 2).abs().max() == 0


def test_latents_get_one_scale():
    net = codec(FUSION)
    x = volume(FUSION, 4)
    net.calibrate(x.split(2))
    assert net.encode(x).std(correction=0).item() == pytest.approx(1, abs=1e-4)
    latent = net.posterior(x)[0]
    assert torch.allclose(net.encode(x), latent * net.scale, atol=1e-5)
    assert torch.allclose(net.decode(latent * net.scale), net.image(latent), atol=1e-4)
    assert net.scale.shape == () and "scale" in net.state_dict()


def test_the_log_variance_is_clamped():
    net = codec(FUSION)
    nn.init.constant_(net.encoder.log_variance.bias, 100.0)
    assert net.posterior(volume(FUSION))[1].max() == 20
    nn.init.constant_(net.encoder.log_variance.bias, -100.0)
    assert net.posterior(volume(FUSION))[1].min() == -30


@EVERY
def test_a_linear_path_is_useful_from_the_first_step(config):
    """With as many channels as cosines nothing is lost; latents have hardly any noise; all parameters learn."""
    torch.manual_seed(0)
    cells = 4**config.dims
    net = WaveletCodec(dataclasses.replace(config, linear=True, channels=cells)).eval()
    x = volume(config)
    assert torch.allclose(net.decode(net.encode(x)), x, atol=1e-4)
    made = net(x, Rng.of(0, 1))
    assert (made.log_variance == -8).all() and (made.image - x).abs().mean() < 0.05
    few = WaveletCodec(dataclasses.replace(config, linear=True, channels=1)).eval()
    pool = {2: nn.functional.avg_pool2d, 3: nn.functional.avg_pool3d}[config.dims]
    assert torch.allclose(pool(few.decode(few.encode(x)), 4), pool(x, 4), atol=1e-4)  # the mean of every cell
    (net(x, Rng.of(0, 1)).image - x).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_training_draws_from_the_posterior():
    net, x = codec(FUSION), volume(FUSION)
    nn.init.constant_(net.encoder.log_variance.bias, -1.0)
    a, b, c = (net(x, Rng.of(seed, 1)).image for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


@EVERY
def test_a_volume_can_be_learned(config):
    torch.manual_seed(0)
    net = WaveletCodec(config).train()
    axes = torch.meshgrid(*[torch.linspace(-1, 1, 16)] * config.dims, indexing="ij")
    x = (2.0 * (sum(a**2 for a in axes) < 0.5) - 1)[None, None].float()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for k in range(40):
        loss = (net(x, Rng.of(k, 1)).image - x).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None for name, p in net.named_parameters())


@pytest.mark.parametrize("stages, channels", [(1, 8), (2, 64)])
def test_the_transforms_alone_lose_nothing(stages, channels):
    """The paper's references: one stage as in WDM (82.6 dB there), two stages."""
    net, x = Stages(stages), volume(FUSION, size=(16, 16, 8))
    z = net.encode(x)
    assert z.shape == (1, channels, *(n // 2**stages for n in (16, 16, 8)))
    assert (net.decode(z) - x).abs().max() < 1e-5


def test_configurations_that_cannot_be_built_are_refused():
    with pytest.raises(InputError, match="has 3 sizes"):
        dataclasses.replace(FUSION, kind="plain")
    with pytest.raises(InputError, match="1 or more"):
        dataclasses.replace(FUSION, blocks=0)
    with pytest.raises(InputError, match="head_size=8"):
        dataclasses.replace(FUSION, attention=12)
