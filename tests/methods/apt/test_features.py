"""The vision transformer and the reader of published weights, the encoder's own training, the fusion."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from amodal.core.errors import InputError
from amodal.core.rng import Rng
from amodal.methods import apt
from amodal.methods.apt.features.encoder import Encoder
from amodal.methods.apt.features.fusion import Fusion, contrast, subset
from amodal.methods.apt.features.vit import ViT, ViTConfig
from amodal.methods.apt.features.weights import fill, translate
from amodal.nn.count import flops, parameters

SMALL = ViTConfig(size=32, patch=8, channels=3, width=24, depth=2, heads=3, outputs=16, pool="cls")
OWN = ViTConfig(size=32, patch=8, width=24, depth=2, heads=3, outputs=16)


def checkpoint(config):
    """A state dict with open_clip's names around timm's vision transformer, and some of the text tower's."""
    draw = torch.Generator().manual_seed(0)

    def new(*shape):
        return 0.1 * torch.randn(shape, generator=draw)

    w, p = config.width, config.patch
    state = {
        "visual.trunk.cls_token": new(1, 1, w),
        "visual.trunk.pos_embed": new(1, 1 + config.patches, w),
        "visual.trunk.patch_embed.proj.weight": new(w, 3, p, p),
        "visual.trunk.patch_embed.proj.bias": new(w),
        "visual.trunk.norm.weight": 1 + new(w),
        "visual.trunk.norm.bias": new(w),
        "visual.head.proj.weight": new(config.outputs, w),
        "logit_scale": new(),
        "text.proj.0.weight": new(4, 4),
        "text.transformer.embeddings.word_embeddings.weight": new(9, 4),
    }
    for i in range(config.depth):
        at = f"visual.trunk.blocks.{i}."
        for name, shape in (("norm1", (w,)), ("norm2", (w,))):
            state |= {f"{at}{name}.weight": 1 + new(*shape), f"{at}{name}.bias": new(w)}
        layers = {"attn.qkv": (3 * w, w), "attn.proj": (w, w), "mlp.fc1": (4 * w, w), "mlp.fc2": (w, 4 * w)}
        for name, (n, m) in layers.items():
            state |= {f"{at}{name}.weight": new(n, m), f"{at}{name}.bias": new(n)}
    return state


def by_the_book(state, config, x):
    """The same network written out from the checkpoint's own names; x [N, 3, size, size] -> [N, outputs]."""

    def get(name):
        return state["visual.trunk." + name]

    def norm(h, name):
        mean, var = h.mean(-1, keepdim=True), h.var(-1, unbiased=False, keepdim=True)
        return (h - mean) / (var + 1e-6).sqrt() * get(name + ".weight") + get(name + ".bias")

    def layer(h, name):
        return h @ get(name + ".weight").T + get(name + ".bias")

    n, p, g = len(x), config.patch, config.size // config.patch
    cells = x.reshape(n, 3, g, p, g, p).permute(0, 2, 4, 1, 3, 5).reshape(n, g * g, -1)
    h = cells @ get("patch_embed.proj.weight").flatten(1).T + get("patch_embed.proj.bias")
    h = torch.cat([get("cls_token").expand(n, 1, -1), h], 1) + get("pos_embed")
    for i in range(config.depth):
        qkv = layer(norm(h, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv")
        qkv = qkv.reshape(n, -1, 3, config.heads, config.width // config.heads).permute(2, 0, 3, 1, 4)
        weights = (qkv[0] @ qkv[1].transpose(-1, -2) / math.sqrt(qkv.shape[-1])).softmax(-1)
        h = h + layer((weights @ qkv[2]).transpose(1, 2).reshape(n, -1, config.width), f"blocks.{i}.attn.proj")
        inner = layer(norm(h, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        h = h + layer(0.5 * inner * (1 + torch.erf(inner / math.sqrt(2))), f"blocks.{i}.mlp.fc2")
    return norm(h, "norm")[:, 0] @ state["visual.head.proj.weight"].T


# reading published weights


def test_weights_under_open_clips_names_make_the_same_network(tmp_path):
    state = checkpoint(SMALL)
    save_file(state, tmp_path / "open_clip_model.safetensors")
    x = Rng.of(0, 3, "x").uniform(1, 32, 32) * 2 - 1
    expected = by_the_book(state, SMALL, x.expand(-1, 3, -1, -1))
    torch.save(state, tmp_path / "published.bin")
    for where in (tmp_path, tmp_path / "open_clip_model.safetensors", tmp_path / "published.bin"):
        vit = ViT(SMALL).eval()
        fill(vit, str(where))
        assert torch.allclose(vit(x)[:, 0], expected, atol=1e-5)


def test_every_weight_of_the_tower_is_used_and_nothing_of_the_text():
    assert set(translate(checkpoint(SMALL))) == set(ViT(SMALL).state_dict())


def test_biomedclips_tower_is_pinned():
    with torch.device("meta"):
        vit = ViT(apt.BIOMEDCLIP)
        x = torch.empty(1, 1, 256, 256)
    assert parameters(vit)[0] == 85_798_656 + 512 * 768  # ViT-B/16 at 224 without a classifier, and the projection
    assert flops(vit, x)[1] / 1e9 == pytest.approx(35.3, rel=0.01)


def test_wrong_weights_are_refused_with_a_sentence(tmp_path):
    save_file({"visual.trunk.cls_token": torch.zeros(1, 1, 5)}, tmp_path / "other.safetensors")
    (tmp_path / "old.bin").write_bytes(b"x")
    refused = {
        "other.safetensors": "does not hold the image tower",
        "old.bin": "does not hold the image tower",  # not even a file of tensors
        "nowhere.safetensors": "no weights there",
        "old.txt": "no weights there",
    }
    for name, sentence in refused.items():
        with pytest.raises(InputError, match=sentence):
            fill(ViT(SMALL), str(tmp_path / name))


# images in


def test_images_are_padded_to_a_square_of_background_and_repeated():
    vit = ViT(SMALL)
    x = vit.prepare(torch.full((1, 1, 32, 16), 0.5))
    assert x.shape == (1, 3, 32, 32)
    assert (x[..., :8] == -1).all() and (x[..., 8:24] == 0.5).all() and (x[..., 24:] == -1).all()


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="multiple of the patch"):
        ViTConfig(size=30, patch=8)


# the encoder


def test_features_are_standardised_over_what_was_measured():
    encoder = Encoder(OWN, own=True, patches=False).eval()
    images = Rng.of(0, 40, "m").uniform(20, 24) * 2 - 1
    encoder.measure(images)
    found = encoder.vectors(images)
    assert found.mean(0).abs().max() < 1e-4 and (found.std(0, correction=0) - 1).abs().max() < 1e-3


def test_tokens_are_one_vector_an_image_or_one_a_patch():
    images = torch.rand(2, 4, 16, 16)
    assert Encoder(OWN, True, patches=False)(images).shape == (2, 1, 4, 16)
    assert Encoder(OWN, True, patches=True)(images).shape == (2, 16, 4, 16)


def test_a_given_encoder_is_frozen_and_an_own_one_learns_from_covered_patches():
    assert not any(p.requires_grad for p in Encoder(SMALL, own=False, patches=False).parameters())
    encoder = Encoder(OWN, own=True, patches=False)
    x = Rng.of(0, 2, "x").uniform(1, 32, 32)
    encoder.loss(x, Rng.of(0, 2)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_what_is_covered_is_not_seen():
    encoder = Encoder(OWN, own=True, patches=False).eval()
    x = Rng.of(0, 1, "x").uniform(1, 32, 32)
    covered = torch.zeros(1, 16, dtype=torch.bool)
    covered[0, 5] = True  # row 1, column 1
    other = x.clone()
    other[..., 8:16, 8:16] = 0.3
    a, b = (encoder.vit.hidden(encoder.vit.prepare(y), covered, encoder.cover) for y in (x, other))
    assert torch.equal(a, b)


# the fusion


def test_the_adapter_is_pinned():
    with torch.device("meta"):
        fusion = Fusion(512, 8)
    assert parameters(fusion) == (3_415_041, 3_415_041)
    assert math.exp(Fusion(8, 2).log_scale.item()) == pytest.approx(1 / 0.07)


def test_modalities_are_a_set_and_absent_ones_take_no_part():
    fusion, tokens = Fusion(16, 4).eval(), Rng.of(0, 3, "t").normal(2, 4, 16)
    present = torch.tensor([[True, True, False, True]] * 3)
    z = fusion(tokens, present)
    assert torch.allclose(z.norm(dim=-1), torch.ones(3, 2))
    turned = torch.tensor([3, 0, 2, 1])
    assert torch.allclose(fusion(tokens[:, :, turned], present[:, turned]), z, atol=1e-6)
    junk = tokens.clone()
    junk[:, :, 2] = 100.0
    assert torch.allclose(fusion(junk, present), z, atol=1e-6)
    assert torch.allclose(fusion(tokens[:, :, [0, 1, 3]], present[:, [0, 1, 3]]), z, atol=1e-6)
    assert torch.isfinite(fusion(tokens, torch.zeros(3, 4, dtype=torch.bool))).all()


def test_with_one_token_an_image_both_ways_to_pool_are_one():
    fusion, tokens = Fusion(16, 4).eval(), Rng.of(0, 3, "t").normal(1, 4, 16)
    present = torch.ones(3, 4, dtype=torch.bool)
    assert torch.allclose(fusion(tokens, present)[:, 0], fusion.whole(tokens, present), atol=1e-6)


def test_the_loss_is_infonce_in_both_directions():
    a, b = (F.normalize(Rng.of(s, 5, "z").normal(8), dim=1) for s in (0, 1))
    scale = torch.tensor(math.log(1 / 0.07))
    logits = (a @ b.T / 0.07).double()
    own = torch.diag(logits)
    by_hand = -((own - logits.logsumexp(1)).mean() + (own - logits.logsumexp(0)).mean()) / 2
    assert contrast(a, b, scale).item() == pytest.approx(by_hand.item(), rel=1e-4)
    assert contrast(a, a, scale) < contrast(a, b, scale)


def test_a_subset_is_of_what_is_present():
    present = torch.tensor([[True, True, True, True], [True, False, True, False], [False, True, False, False]])
    for i in range(20):
        u = Rng.of(i, 3).uniform(4)
        part = subset(present, u, torch.tensor([2, 1, 0]))
        assert part.sum(1).tolist() == [2, 1, 1] and not (part & ~present).any()
