import colorsys

import numpy as np
import pytest
import torch

from stda import BadInput
from stda.classify import augment
from stda.compute import rng

STILL = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}


@pytest.fixture
def images():
    return torch.rand(64, 32, 32, 3, generator=rng(1)).permute(0, 3, 1, 2) * 2 - 1


def fixed(monkeypatch, value):
    """Make every uniform draw the same number."""
    monkeypatch.setattr(augment.torch, "rand", lambda *shape, generator=None: torch.full(shape, value))


def test_none_is_none(images):
    assert augment.none(images, rng(0)) is images


def test_classic_keeps_shape_range_and_order_of_memory(images):
    changed = augment.classic(images, rng(0))
    assert changed.shape == images.shape
    assert changed.dtype == torch.float32
    assert changed.abs().max() <= 1
    assert changed.is_contiguous(memory_format=torch.channels_last)


def test_each_image_draws_its_own():
    one = (torch.rand(1, 3, 16, 16, generator=rng(0)) * 2 - 1).repeat(20, 1, 1, 1)
    changed = augment.classic(one, rng(0))
    distances = torch.cdist(changed.flatten(1), changed.flatten(1)) + torch.eye(20) * 99
    assert distances.min() > 1


def test_the_seed_decides(images):
    assert torch.equal(augment.classic(images, rng(5)), augment.classic(images, rng(5)))
    assert not torch.equal(augment.classic(images, rng(5)), augment.classic(images, rng(6)))


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", [0, 1])
def test_quarter_turns_and_flips_are_exact(images, monkeypatch, quarter, flip):
    fixed(monkeypatch, quarter / 4)
    monkeypatch.setattr(augment.torch, "randint", lambda *a, generator=None: torch.full((64,), flip))
    changed = augment.classic(images, rng(0), zoom=(1.0, 1.0), **STILL)
    wanted = [torch.rot90(images, k, dims=(2, 3)) for k in range(4)]
    wanted += [turned.flip(3) for turned in wanted]
    errors = [(changed - candidate).abs().max().item() for candidate in wanted]
    assert min(errors) < 1e-4
    assert (np.argmin(errors) >= 4) == (flip == 0)


def test_all_orientations_occur(images):
    """A mark off the centre of an image lands anywhere on its circle."""
    marked = torch.full((400, 3, 33, 33), -1.0)
    marked[:, :, 16, 26] = 1.0
    changed = augment.classic(marked, rng(2), zoom=(1.0, 1.0), **STILL) + 1
    side = torch.arange(33.0) - 16
    y = (changed.sum(dim=(1, 3)) * side).sum(dim=1)
    x = (changed.sum(dim=(1, 2)) * side).sum(dim=1)
    sectors = ((torch.atan2(y, x) / (2 * torch.pi) + 1) % 1 * 8).long()
    assert torch.bincount(sectors, minlength=8).min() > 25


def test_zoom_magnifies(monkeypatch):
    square = torch.full((4, 3, 40, 40), -1.0)
    square[:, :, 10:30, 10:30] = 1.0
    for value, factor in ((0.0, 0.8), (0.999999, 1.5)):
        fixed(monkeypatch, value)
        changed = augment.classic(square, rng(0), zoom=(0.8, 1.5), **STILL)
        area = (changed[0, 0] > 0).float().sum().item()
        assert area == pytest.approx((20 * factor) ** 2, rel=0.06)


def test_jitter_at_rest_changes_nothing(images):
    torch.testing.assert_close(augment.jitter(images, rng(0), **STILL), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_brightness_contrast_and_saturation_are_those_of_torchvision(images, monkeypatch, factor):
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    fixed(monkeypatch, 1.0 if factor > 1 else 0.0)
    for name in ("brightness", "contrast", "saturation"):
        ours = augment.jitter(images, rng(0), **(STILL | {name: 0.3}))
        adjust = getattr(functional, f"adjust_{name}")
        theirs = adjust((images + 1) / 2, factor) * 2 - 1
        # torchvision's luma weights have three and four digits
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)


def test_hue_turns_the_colour_and_keeps_the_luma(monkeypatch):
    skin = torch.tensor([0.4, 0.1, -0.1]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    fixed(monkeypatch, 1.0)
    changed = augment.jitter(skin, rng(0), **(STILL | {"hue": 0.05}))
    luma = torch.tensor(augment.LUMA).view(1, 3, 1, 1)
    torch.testing.assert_close((changed * luma).sum(1), (skin * luma).sum(1), rtol=0, atol=2e-3)
    before, after = (colorsys.rgb_to_hsv(*((x[0, :, 0, 0] + 1) / 2).tolist())[0] for x in (skin, changed))
    assert abs((after - before + 0.5) % 1 - 0.5) == pytest.approx(0.05, abs=0.02)


def test_unknown_name():
    with pytest.raises(BadInput, match="classic"):
        augment.augmentation("mixdown")


def test_five_crops_are_the_corners_and_the_centre_enlarged(images):
    """With half the side, a crop's pixels enlarged twofold: averaged in pairs they are the crop's own again."""
    picture = torch.nn.functional.interpolate(images[:1, :, ::4, ::4], size=32, mode="nearest")  # flat blocks of 4 px
    many = augment.five_crop(picture.repeat(200, 1, 1, 1), rng(0), share=0.5)
    centres = many[:, :, 4::8, 4::8]  # the middle of enlarged blocks
    crops = [
        picture[:, :, y : y + 16, x : x + 16][:, :, 2::4, 2::4] for x, y in ((0, 0), (16, 0), (0, 16), (16, 16), (8, 8))
    ]
    crops += [crop.flip(3) for crop in crops]
    distance = torch.stack([(centres - crop).abs().flatten(1).amax(1) for crop in crops], dim=1)
    assert (distance.min(dim=1).values < 0.35).all()  # bicubic sampling half a pixel beside the middle
    assert set(distance.argmin(dim=1).tolist()) == set(range(10))


@pytest.mark.parametrize("name", ["trivial", "randaugment"])
def test_automatic_augmentation_is_drawn_for_each_image_and_by_the_seed(images, name):
    change, one = augment.augmentation(name), images[:1].repeat(24, 1, 1, 1)
    state = torch.random.get_rng_state()
    changed = change(one, rng(3))
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's random numbers are touched
    assert torch.equal(changed, change(one, rng(3)))
    assert not torch.equal(changed, change(one, rng(4)))
    assert len({image.numpy().tobytes() for image in changed}) > 10
    assert changed.abs().max() <= 1


def test_mixup_mixes_images_and_labels_by_the_same_share(images):
    labels = torch.arange(64) % 4
    flat = labels.view(64, 1, 1, 1).float().expand(64, 3, 8, 8) / 4
    mixed, shares = augment.mix("mixup", flat, labels, 4, rng(0))
    assert shares.shape == (64, 4)
    torch.testing.assert_close(shares.sum(1), torch.ones(64))
    torch.testing.assert_close(mixed[:, 0, 0, 0], (shares * torch.arange(4) / 4).sum(1))
    assert not torch.equal(mixed, flat)


def test_cutmix_takes_a_box_whose_area_is_the_labels_share():
    labels = torch.arange(8) % 2
    flat = labels.view(8, 1, 1, 1).float().expand(8, 3, 16, 16)
    drawn = [augment.mix("cutmix", flat, labels, 2, rng(seed)) for seed in range(10)]
    for mixed, shares in drawn:
        assert set(mixed.unique().tolist()) <= {0.0, 1.0}
        torch.testing.assert_close(mixed[:, 0].mean(dim=(1, 2)), shares[:, 1])
    assert any((shares.max(1).values < 1).any() for _, shares in drawn)


def test_soft_labels_can_be_mixed_and_other_augmentations_mix_nothing():
    images, soft = torch.rand(6, 3, 8, 8), torch.full((6, 3), 1 / 3)
    torch.testing.assert_close(augment.mix("mixup", images, soft, 3, rng(0))[1], soft)
    same, labels = augment.mix("classic", images, soft, 3, rng(0))
    assert same is images
    assert labels is soft
