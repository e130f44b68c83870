import json
import threading

import numpy as np
import pytest
import torch

from amodal.core.contract import Batch, Grid
from amodal.core.errors import InputError
from amodal.data import dataset
from amodal.data.dataset import Cache, prefetch
from amodal.data.frame import Frame
from amodal.data.intensity import Window
from amodal.data.volume import Study, Volume

NAMES = ("T1w", "T2w", "FLAIR")
GRID = Grid()
LPS = np.diag([-1.0, -1.0, 2.0, 1.0])


def study(subject, names=NAMES, shape=(40, 44, 12), scale=100.0, affine=LPS, seed=0):
    """A bright, lopsided box in an empty field of view; the lowest third of the slices is empty."""
    noise = np.random.default_rng(seed)
    volumes = {}
    for k, name in enumerate(names):
        data = np.zeros(shape, np.float32)
        data[8:30, 10:38, 4:11] = noise.uniform(0.4, 1.0 + k, (22, 28, 7)) * scale
        volumes[name] = Volume(data, affine)
    return Study(f"sub-{subject}", volumes)


@pytest.fixture
def cache(tmp_path):
    return Cache.build(
        [study("01"), study("02", ("T1w", "FLAIR"), scale=300.0, seed=1)], GRID, NAMES, tmp_path / "cache"
    )


def test_it_holds_each_study_on_the_networks_grid(cache):
    truth = study("01")
    frame = Frame.of(truth["T1w"], GRID)
    stack, present = cache.stack("sub-01")
    assert cache.labels == ("sub-01", "sub-02") and len(cache) == 2
    assert stack.dtype == np.float32 and stack.shape == (3, *frame.shape) and present.tolist() == [True] * 3
    for k, name in enumerate(NAMES):
        expected = Window.of(truth[name].data, GRID.percentiles).enter(frame.enter(truth[name]))
        np.testing.assert_allclose(stack[k], expected, atol=5e-4)  # half precision
    assert stack.min() == -1 and stack.max() == 1


def test_slices_are_contiguous_on_disk(cache):
    array = np.load(cache.folder / "study-00000.npy", mmap_mode="r", allow_pickle=False)
    assert array.dtype == np.float16 and array[..., 3].flags.f_contiguous
    whole = np.asarray(array)
    assert whole[..., 3].base is not None and array[..., 3].nbytes == array.strides[-1]


def test_absent_modalities_are_minus_one_and_say_so(cache):
    stack, present = cache.stack("sub-02")
    assert present.tolist() == [True, False, True] and (stack[1] == -1).all() and stack[2].max() == 1
    batch = cache.only("sub-02").batch(0, 5, 0, (32, 32))
    assert batch.present.shape == (5, 3, 1, 1) and batch.present.dtype == torch.bool
    assert batch.present[:, :, 0, 0].tolist() == [[True, False, True]] * 5
    assert (batch.images[:, 1] == -1).all() and (batch.images[:, 0] > 0).any()


def test_windows_are_the_median_over_those_who_have_it(tmp_path):
    studies = [study(str(k), scale=s) for k, s in enumerate((100.0, 250.0, 900.0))] + [
        study("3", ("T1w",), scale=500.0)
    ]
    windows = Cache.build(studies, GRID, (*NAMES, "PDw"), tmp_path / "cache").windows()
    each = [Window.of(s["T1w"].data, GRID.percentiles) for s in studies]
    assert windows["T1w"] == pytest.approx((0.0, float(np.median([w.hi for w in each]))))
    assert windows["T2w"][1] == pytest.approx(Window.of(studies[1]["T2w"].data, GRID.percentiles).hi)
    assert "PDw" not in windows


def same(a, b):
    return torch.equal(a.images, b.images) and torch.equal(a.present, b.present)


def test_a_batch_is_a_pure_function_of_its_arguments(cache):
    reopened = Cache.open(cache.folder)
    first = cache.batch(7, 4, 3, (24, 32))
    cache.batch(8, 4, 3, (24, 32))
    assert same(first, reopened.batch(7, 4, 3, (24, 32)))
    assert first.images.shape == (4, 3, 24, 32) and first.images.dtype == torch.float32
    for other in (cache.batch(8, 4, 3, (24, 32)), cache.batch(7, 4, 4, (24, 32))):
        assert not torch.equal(first.images, other.images)
    longer = cache.batch(7, 6, 3, (24, 32))  # sample i does not care how many others there are
    assert torch.equal(longer.images[:4], first.images)


def test_processes_share_out_the_batches_of_one(cache):
    for step, rank in ((0, 0), (0, 1), (5, 1)):
        assert same(cache.batch(step, 2, 0, (16, 16), rank=rank, world=2), cache.batch(2 * step + rank, 2, 0, (16, 16)))


def test_crops_hold_the_content_and_are_padded(cache):
    """A crop wider than the content holds all of it; where it leaves the array it is -1."""
    stack, _ = cache.stack("sub-01")
    sums = {round(float((s + 1).sum()), 2) for s in np.moveaxis(stack, -1, 0)}
    offsets = set()
    for image in cache.only("sub-01").batch(0, 40, 0, (64, 48), augment=False).images:
        assert round(float((image + 1).double().sum()), 2) == pytest.approx(
            min(sums, key=lambda s: abs(s - float((image + 1).sum()))), rel=1e-4
        )
        if (inside := (image > -1).any(0).any(1).nonzero()).numel():
            offsets.add(int(inside[0]))
    assert len(offsets) > 8  # at random


def test_small_crops_stay_within_the_content(cache):
    images = cache.only("sub-01").batch(0, 60, 0, (8, 8), augment=False).images
    filled = (images > -0.99).flatten(1).float().mean(1)
    assert ((filled > 0.95) | (filled == 0)).all()  # cut out of the box, or an empty slice


def test_slices_with_content_come_first_but_empty_ones_come_too(cache):
    images = cache.only("sub-01").batch(0, 400, 0, (40, 44), augment=False).images
    empty = (images == -1).flatten(1).all(1).float().mean().item()
    depth = cache.entries[0].shape[2]
    rare = (depth - 7) * 0.1
    assert empty == pytest.approx(rare / (rare + 7), abs=0.04)


def test_sub_volumes(cache):
    batch = cache.batch(0, 3, 0, (16, 24, 8))
    assert batch.images.shape == (3, 3, 16, 24, 8) and batch.present.shape == (3, 3, 1, 1, 1)
    wide = cache.only("sub-01").batch(0, 6, 0, (56, 64, 20), augment=False).images
    stack, _ = cache.stack("sub-01")
    for image in wide:  # everything is there, and -1 around it
        assert float((image + 1).double().sum()) == pytest.approx(float((stack + 1).sum(dtype=np.float64)), rel=1e-5)
    assert len({int((w[0] > -0.9).any(0).any(0).nonzero()[0]) for w in wide}) > 1  # also moved along z


def test_augmentation_flips_and_bends_intensities_per_modality(cache):
    one = cache.only("sub-01")
    plain, changed = (one.batch(0, 64, 0, (64, 64), augment=a, jitter=a).images for a in (False, True))
    assert changed.min() >= -1 and changed.max() <= 1
    flipped = same_side = untouched = 0
    for a, b in zip(plain, changed):
        if (a == -1).all():
            assert (b == -1).all()  # empty stays empty
            continue
        outline = a.amax(0) > -0.9
        if torch.equal(outline, outline.flip(0)):
            continue  # in the middle: one cannot tell
        mirrored = torch.equal(b.amax(0) > -0.9, outline.flip(0))
        assert mirrored or torch.equal(b.amax(0) > -0.9, outline)
        flipped, same_side = flipped + mirrored, same_side + (not mirrored)
        c = b.flip(1) if mirrored else b
        alike = [torch.equal(x, y) for x, y in zip(a, c)]
        untouched += sum(alike)
        for x, y, kept in zip(a, c, alike):
            u, v = (x[outline] + 1) / 2, (y[outline] + 1) / 2
            if not kept:  # v = gain u^gamma: monotone, within the limits
                assert (v <= 1.1 * u**0.8 + 1e-3).all() and (v >= (0.9 * u**1.25).clamp(max=1) - 1e-3).all()
    assert 15 < flipped < 45 and 15 < same_side < 45
    assert 0.35 < untouched / (3 * (flipped + same_side)) < 0.65
    assert one.stack("sub-01")[0].min() == -1  # nothing was written back


def test_orientation_is_ras(tmp_path):
    """Left-right is the first axis: the same head in LPS and in RAS gives the same stack."""
    las = study("a")
    ras = Study("sub-b", {n: Volume(v.data[::-1, ::-1].copy(), _flipped(v)) for n, v in las.volumes.items()})
    cache = Cache.build([las, ras], GRID, NAMES, tmp_path / "cache")
    np.testing.assert_array_equal(cache.stack("sub-a")[0], cache.stack("sub-b")[0])


def _flipped(volume):
    affine = volume.affine.copy()
    for axis in (0, 1):
        affine[:3, 3] += affine[:3, axis] * (volume.shape[axis] - 1)
        affine[:3, axis] *= -1
    return affine


def test_some_of_the_studies(cache):
    assert cache.without("sub-01").labels == ("sub-02",) and cache.only("sub-01").windows().keys() == set(NAMES)
    with pytest.raises(InputError, match="no study sub-09; choose among sub-01, sub-02"):
        cache.only("sub-09")


def test_what_cannot_be_built_leaves_nothing(tmp_path):
    folder = tmp_path / "cache"
    with pytest.raises(InputError, match="two studies have this label"):
        Cache.build([study("01"), study("01")], GRID, NAMES, folder)
    with pytest.raises(InputError, match="no study with any of CT"):
        Cache.build([study("01")], GRID, ("CT",), folder)
    flat = Study("sub-03", {"T1w": Volume(np.ones((8, 8, 8)), LPS)})
    with pytest.raises(InputError, match="sub-03 T1w: .*constant"):
        Cache.build([study("01"), flat], GRID, NAMES, folder)
    assert list(tmp_path.iterdir()) == []


def test_studies_without_any_of_the_modalities_are_listed(tmp_path):
    cache = Cache.build([study("01", ("T1w",)), study("02", ("T2w",))], GRID, ("T2w",), tmp_path / "cache")
    assert cache.labels == ("sub-02",) and cache.skipped == ("sub-01",)


def test_overwriting_is_asked_for(cache):
    with pytest.raises(InputError, match="--overwrite"):
        Cache.build([study("05")], GRID, NAMES, cache.folder)
    assert Cache.build([study("05")], GRID, NAMES, cache.folder, overwrite=True).labels == ("sub-05",)
    assert sorted(p.name for p in cache.folder.iterdir()) == ["index.json", "study-00000.npy"]


@pytest.mark.parametrize("change", [
    lambda index: index.update(format=99), lambda index: index.pop("studies"),
    lambda index: index["studies"][0].pop("box"), lambda index: index["studies"][0].update(file="../elsewhere.npy"),
])  # fmt: skip
def test_what_is_no_cache_is_refused(cache, change):
    index = json.loads((cache.folder / "index.json").read_text())
    change(index)
    (cache.folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="build it anew"):
        Cache.open(cache.folder)
    with pytest.raises(InputError, match="no training cache"):
        Cache.open(cache.folder / "nowhere")


def test_prefetching_changes_nothing_but_when():
    made, threads = [], set()

    def make(k):
        made.append(k)
        threads.add(threading.current_thread().name)
        if k == 9:
            raise InputError("nine is not a batch.")
        return Batch(torch.full((1, 1, 2, 2), float(k)), torch.ones(1, 1, 1, 1, dtype=torch.bool))

    get = prefetch(make, depth=2)
    assert [get(k).images[0, 0, 0, 0].item() for k in (0, 1, 2, 3, 50, 54, 58, 2)] == [0, 1, 2, 3, 50, 54, 58, 2]
    assert made[:4] == [0, 1, 2, 3] and 62 in made and threading.current_thread().name not in threads
    assert made.count(3) == 1  # made ahead once, not twice
    with pytest.raises(InputError, match="nine"):
        get(9)


def test_prefetching_works_ahead():
    done = threading.Event()

    def make(k):
        if k == 2:
            done.set()
        return k

    get = prefetch(make, depth=2)
    get(0)
    assert done.wait(5)


def test_the_box_is_where_the_content_is():
    content = np.zeros((30, 32, 25), bool)
    content[2:26, 3:31, 1:24] = True
    content[29, 0, 24] = True  # a stray voxel
    assert dataset._box(content) == ((2, 26), (3, 31), (1, 24))
    assert dataset._box(np.zeros((4, 5, 6), bool)) == ((0, 4), (0, 5), (0, 6))
