"""The published networks: names, shapes and sizes of their files, and features from random weights in these formats."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from amodal.core.errors import InputError
from amodal.metrics import extractors
from amodal.metrics.extractors import i3d, inception, medicalnet, prepare
from amodal.metrics.extractors.weights import hollow

NETS = {
    "medicalnet-resnet10": (medicalnet.ResNet, 10),
    "medicalnet-resnet50": (medicalnet.ResNet, 50),
    "inception-v3": (inception.Inception,),
    "i3d": (i3d.I3D,),
}
# millions of parameters as published: Chen et al. 2019 (table; 46.21 with a head), torchvision's Inception v3 without
# its auxiliary classifier and with 1008 classes, and I3D with 400
PARAMETERS = {
    "medicalnet-resnet10": 14_355_520,
    "medicalnet-resnet50": 46_155_072,
    "inception-v3": 23_834_568 + 8 * 2049,
    "i3d": 12_697_264,
}
NAMES = {  # some tensors of each published file
    "medicalnet-resnet10": {
        "conv1.weight": (64, 1, 7, 7, 7),
        "bn1.running_var": (64,),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1, 1),
        "layer4.0.conv2.weight": (512, 512, 3, 3, 3),
    },
    "medicalnet-resnet50": {
        "layer1.0.downsample.1.weight": (256,),
        "layer3.5.conv3.weight": (1024, 256, 1, 1, 1),
        "layer4.2.bn3.bias": (2048,),
    },
    "inception-v3": {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
        "Mixed_7a.branch7x7x3_2.conv.weight": (192, 192, 1, 7),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.bn.running_mean": (384,),
        "fc.weight": (1008, 2048),
    },
    "i3d": {
        "Conv3d_1a_7x7.conv3d.weight": (64, 3, 7, 7, 7),
        "Mixed_3b.b1b.conv3d.weight": (128, 96, 3, 3, 3),
        "Mixed_5c.b3b.bn.weight": (128,),
        "logits.conv3d.bias": (400,),
    },
}


def random_tensors(name):
    """Weights of a sensible size, so that features are neither 0 nor infinite."""
    draw = torch.Generator().manual_seed(0)
    found = {}
    for key, value in hollow(*NETS[name]).state_dict().items():
        noise = 3.4 * (torch.rand(value.shape, generator=draw) - 0.5)
        if value.ndim > 1:
            found[key] = noise * (2 / value[0].numel()) ** 0.5
        elif key.endswith("num_batches_tracked"):
            found[key] = torch.tensor(1)
        else:
            found[key] = 0.1 * noise + (1.0 if key.endswith(("running_var", "weight")) else 0.0)
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    paths = {}
    for name in ("medicalnet-resnet10", "inception-v3", "i3d"):
        tensors = random_tensors(name)
        published = {"state_dict": {f"module.{k}": v for k, v in tensors.items()}}
        paths[name] = folder / f"{name}.pth"
        torch.save(published if name.startswith("medicalnet") else tensors, paths[name])
    return paths


def volume(seed=0):
    grid = np.random.default_rng(seed).random((20, 24, 18)).astype(np.float32)
    return grid / grid.max()


@pytest.mark.parametrize("name", NETS)
def test_names_shapes_and_sizes_are_the_published_ones(name):
    with torch.device("meta"):
        net = NETS[name][0](*NETS[name][1:])
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    assert {k: shapes.get(k) for k in NAMES[name]} == NAMES[name]
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]


def test_medicalnet_features(files):
    found = extractors.load("medicalnet-resnet10", files["medicalnet-resnet10"])
    features = found.forward(volume())
    assert features.shape == (1, 512)
    assert np.isfinite(features).all()
    assert not np.allclose(features, found.forward(volume(1)))
    again = extractors.load("medicalnet-resnet10", files["medicalnet-resnet10"])
    assert np.allclose(features, again.forward(40 * volume() + 7), rtol=1e-3, atol=1e-4)  # of z-scores
    assert len(found.sha256) == 64
    assert found.sha256 == again.sha256


def test_i3d_features(files):
    features = extractors.load("i3d", files["i3d"]).forward(volume())
    assert features.shape == (1, 400)
    assert np.isfinite(features).all()
    assert features.std() > 0


def test_inception_features_of_slices(files, monkeypatch):
    monkeypatch.setattr(inception, "SLICES", 2)
    found = extractors.load("inception-v3", files["inception-v3"])
    features = found.forward(volume())
    assert features.shape == (2, 2048)
    assert np.isfinite(features).all()
    assert not np.allclose(features[0], features[1])
    with pytest.raises(InputError, match="black is 0 and white is 1"):
        found.forward(100 * volume())


def test_slices_are_averaged_or_samples_of_their_subject():
    toy = extractors.Extractor("toy", "ab" * 32, "by slice", lambda x: x.mean((0, 1))[:, None])
    volumes = [("sub-1", volume()[..., :3]), ("sub-2", volume(1)[..., :2])]
    mean, each = (extractors.extract(toy, volumes, each_slice=e) for e in (False, True))
    assert mean.values.shape == (2, 1)
    assert each.values.shape == (5, 1)
    assert mean.values[0] == pytest.approx(each.values[:3].mean(0))
    assert each.groups == ("sub-1", "sub-1", "sub-1", "sub-2", "sub-2")
    assert mean.preparation != each.preparation  # so that the two never compare


def test_another_networks_file_is_refused(files):
    for name, other in (("i3d", "inception-v3"), ("medicalnet-resnet50", "medicalnet-resnet10")):
        with pytest.raises(InputError, match="another network's|has the shape"):
            extractors.load(name, files[other])


def test_slices_are_resized_as_tensorflow_did():
    """Pixel i of n at i n / 299, without half a pixel of offset: corners stay, and a ramp stays a ramp."""
    ramp = torch.arange(10.0)
    found = inception._resizing(10, 299) @ ramp
    assert torch.allclose(found, torch.clamp(torch.arange(299.0) * 10 / 299, max=9.0), atol=1e-5)
    pictures = inception.slices(torch.full((10, 12, 30), 0.5))
    assert pictures.shape[1:] == (3, 299, 299)
    assert torch.allclose(pictures, torch.tensor(0.0), atol=1e-6)  # 127.5 rounds to 128


def test_padding_is_that_of_tensorflow():
    x = torch.ones(1, 1, 5, 4, 3)
    assert i3d.same(x, (3, 3, 3), (2, 2, 2)).shape[2:] == (7, 5, 5)
    last = i3d.same(torch.ones(1, 1, 4, 4, 4), (3, 3, 3), (2, 2, 2))
    assert last[0, 0, -1].sum() == 0  # the odd zero is at the end
    assert last[0, 0, 0, 0, 0] == 1
    assert i3d.pool(torch.rand(1, 2, 16, 9, 7), (3, 3, 3), (2, 2, 2)).shape[2:] == (8, 5, 4)


def test_the_block_of_a_resnet_is_dilated():
    """One voxel reaches 4 to either side through the first 3^3 filter of the last stage, and no other."""
    block = medicalnet.Block(4, 4, 1, 4, bottleneck=False).eval()
    x = torch.zeros(1, 4, 17, 17, 17)
    x[:, :, 8, 8, 8] = 1
    touched = (F.conv3d(x, torch.ones(1, 4, 3, 3, 3), padding=4, dilation=4)[0, 0] != 0).nonzero()
    mine = (block.conv1(x).abs().sum(1)[0] > 0).nonzero()
    assert torch.equal(mine, touched)
    assert sorted(set(mine[:, 0].tolist())) == [4, 8, 12]


def test_z_scores():
    x = prepare.zscore(volume())
    assert x.shape == (1, 1, 20, 24, 18)
    assert float(x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(x.std(correction=0)) == pytest.approx(1, abs=1e-5)
