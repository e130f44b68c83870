"""The vector-quantised autoencoder: the paper's sizes, shapes, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from amodal.codecs.vq import VQ, VQConfig
from amodal.core.errors import InputError
from amodal.nn.count import flops, parameters

TINY = VQConfig(widths=(8, 12), inner=8, units=1, channels=4, codes=32)


@pytest.mark.parametrize(
    ("widths", "encoder", "decoder", "size", "gflops"),
    [
        ((256, 384, 512), 66_784_008, 66_784_001, (192, 192, 64), 8222.4),
        ((32, 64, 128), 9_977_992, 9_977_985, (192, 192, 32), 521.7),
    ],
    ids=["brain", "heart"],
)
def test_sizes_of_the_paper(widths, encoder, decoder, size, gflops):
    config = VQConfig(widths=widths)
    with torch.device("meta"):
        net = VQ(config)
        x, z = torch.empty(1, 1, *size), torch.empty(1, 8, *(n // 8 for n in size))
    assert parameters(net.encoder)[0] == encoder and parameters(net.decoder)[0] == decoder
    assert parameters(net)[0] - parameters(net)[1] == 8192 * 8 == 65_536
    assert round(flops(net.encoder, x)[0] / 1e9, 1) == pytest.approx(gflops, abs=0.1)
    assert round(flops(net.decoder, z)[0] / 1e9, 1) == pytest.approx(gflops, abs=0.1)


@pytest.mark.parametrize("dims", [2, 3])
def test_shapes(dims):
    net = VQ(VQConfig(widths=(8, 12), inner=8, units=1, channels=4, codes=32, dims=dims)).eval()
    x = torch.randn(3, 1, *(8,) * dims)
    z = net.encode(x)
    assert z.shape == (3, 4, *(2,) * dims) and net.factor == 4
    assert net.decode(z).shape == x.shape


def test_an_image_does_not_depend_on_its_batch():
    net = VQ(TINY).eval().requires_grad_(False)
    x = torch.randn(3, 1, 8, 8, 8)
    assert torch.equal(net.encode(x)[1:2], net.encode(x[1:2]))
    assert torch.equal(net.decode(net.encode(x))[1:2], net.decode(net.encode(x[1:2])))


def test_only_the_way_to_the_image_is_quantised():
    net = VQ(TINY).eval().requires_grad_(False)
    z = net.encode(torch.randn(1, 1, 8, 8, 8))
    assert not torch.equal(z, net.embed(z))
    assert torch.equal(net.decode(z), net.decode(net.embed(z)))


def test_it_learns():
    torch.manual_seed(0)
    net = VQ(TINY).train()
    axis = torch.linspace(-1, 1, 16)
    x = torch.stack([torch.tanh(3 * (axis - c))[:, None, None].expand(16, 16, 16) for c in (-0.5, 0.0, 0.5)])[:, None]
    net.embed.start([net.encode(x)], torch.rand(32))
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(60):
        z = net.encode(x)
        codes = net.embed(z)
        net.embed.follow(z, torch.rand(32))
        error = (net.image(codes) - x).abs().mean()
        optimiser.zero_grad()
        (error + net.commitment(z, codes)).backward()
        optimiser.step()
        losses.append(error.item())
    assert losses[-1] < 0.35 * losses[0]


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match="multiple of 4"):
        VQ(TINY).encode(torch.zeros(1, 1, 8, 8, 6))
    with pytest.raises(InputError, match="at least one width"):
        VQConfig(widths=())


def test_a_linear_path_begins_as_the_lowest_cosines():
    """With all cosines and codes that are the latents themselves the image comes back; the convolutions begin at 0."""
    net = VQ(replace(TINY, channels=64, codes=8, groups=1, linear=True)).eval().requires_grad_(False)
    x = torch.randn(1, 1, 8, 8, 8)
    z = net.encode(x)
    net.embed.start([z], torch.arange(8) / 8 + 1e-3)
    assert torch.allclose(net.decode(z), x, atol=1e-4)
    assert torch.allclose(z[:, 0], 8 * F.avg_pool3d(x, 4)[:, 0], atol=1e-5)


def test_groups_divide_the_channels():
    with pytest.raises(InputError, match="divides the 4 channels"):
        replace(TINY, groups=3)
