import itertools
import json

import numpy as np
import pytest
import torch

from stda import BadInput
from stda.compute import rng
from stda.generators.adversarial import augment
from stda.generators.adversarial.augment import POLICIES, Augmentation, diff_augment


def pictures(n=6, size=8, seed=0, dtype=torch.float32):
    """Return random images in channels-last memory."""
    return (torch.rand(n, size, size, 3, generator=rng(seed), dtype=dtype) * 2 - 1).permute(0, 3, 1, 2)


def changed(images, policy, p, seed=0):
    """Return which images a policy changes."""
    return (diff_augment(images, policy, noise=rng(seed), p=p) != images).flatten(1).any(dim=1)


def controlled(**knobs):
    return Augmentation("adaptive", **{"images_to_full": 100, **knobs})


# ---------------------------------------------------------------- each transform against a plain loop over images


def test_blit_is_transpose_then_flips():
    images = pictures(8, size=5)
    marks = torch.tensor(list(itertools.product((False, True), repeat=3))).T
    moved = augment.blit(images, *marks).numpy()
    seen = set()
    for image, result, (turned, upside_down, mirrored) in zip(images.numpy(), moved, marks.T.tolist(), strict=True):
        wanted = image.transpose(0, 2, 1) if turned else image
        wanted = wanted[:, ::-1] if upside_down else wanted
        wanted = wanted[:, :, ::-1] if mirrored else wanted
        np.testing.assert_array_equal(result, wanted)
        turns = [np.rot90(side, k, axes=(1, 2)) for side in (image, image[:, :, ::-1]) for k in range(4)]
        seen.add(next(k for k, turn in enumerate(turns) if np.array_equal(turn, result)))
    assert seen == set(range(8))  # all quarter turns and their mirror images


def test_recolour_follows_the_definition_image_by_image():
    images = pictures(4, size=7)
    brightness, saturation, contrast = np.array([[-0.5, 0, 0.3, 0.1], [0, 2, 1, 0.4], [1, 0.5, 1.5, 0.8]])
    result = augment.recolour(images, *(torch.tensor(x) for x in (brightness, saturation, contrast)))
    for i, image in enumerate(images.double().numpy()):
        wanted = image + brightness[i]
        grey = wanted.mean(axis=0)
        wanted = (wanted - grey) * saturation[i] + grey
        wanted = (wanted - wanted.mean()) * contrast[i] + wanted.mean()
        np.testing.assert_allclose(result[i], wanted, atol=1e-6)


def test_translate_shifts_and_fills_with_grey():
    images = pictures(9, size=6)
    down, right = torch.tensor(list(itertools.product((-2, 0, 1), repeat=2))).T
    result = augment.translate(images, down, right, largest=2).numpy()
    for i, (dy, dx) in enumerate(zip(down.tolist(), right.tolist(), strict=True)):
        wanted = np.zeros((3, 6, 6), np.float32)
        for y, x in itertools.product(range(6), repeat=2):
            if 0 <= y + dy < 6 and 0 <= x + dx < 6:
                wanted[:, y + dy, x + dx] = images[i, :, y, x]
        np.testing.assert_array_equal(result[i], wanted)


def test_cut_out_blanks_the_part_of_the_square_inside():
    images = pictures(5, size=6)
    top, left = torch.tensor([[0, 2, -2, 4, 6], [0, 3, -1, 4, 6]])
    result = augment.cut_out(images, top, left, side=3).numpy()
    for i, (y, x) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
        wanted = images[i].numpy().copy()
        wanted[:, max(y, 0) : max(y + 3, 0), max(x, 0) : max(x + 3, 0)] = 0
        np.testing.assert_array_equal(result[i], wanted)
    assert torch.equal(torch.from_numpy(result[4]), images[4])  # a corner below the image cuts nothing


# ---------------------------------------------------------------- derivatives


@pytest.mark.parametrize("policy", [*((name,) for name in POLICIES), POLICIES])
def test_first_and_second_derivatives(policy):
    images = pictures(2, size=4, dtype=torch.float64).requires_grad_(True)

    def bent(x):
        return diff_augment(x, policy, noise=rng(3)).pow(3)

    assert torch.autograd.gradcheck(bent, (images,))
    assert torch.autograd.gradgradcheck(bent, (images,))


def test_every_orientation_and_shift_has_its_own_gradient():
    marks = torch.tensor(list(itertools.product((False, True), repeat=3))).T
    images = pictures(8, size=3, dtype=torch.float64)[:, :1].requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: augment.blit(x, *marks), (images,))
    shifts = torch.tensor([[-1, 0, 1, 2, 2, -2, 0, 0], [0, 1, 1, -1, 2, -2, -1, 0]])
    assert torch.autograd.gradcheck(lambda x: augment.translate(x, *shifts, largest=2), (images,))


def test_a_gradient_penalty_reaches_the_weights():
    images, weight = pictures().requires_grad_(True), torch.ones(3, requires_grad=True)
    scores = (diff_augment(images, POLICIES, noise=rng(0)).square().mean(dim=(2, 3)) @ weight).sum()
    (gradient,) = torch.autograd.grad(scores, images, create_graph=True)
    gradient.square().sum().backward()
    assert weight.grad.abs().min() > 0


# ---------------------------------------------------------------- how often, how much


@pytest.mark.parametrize("policy", [*((name,) for name in POLICIES), POLICIES])
def test_p_0_is_the_identity_and_the_draws_do_not_depend_on_p(policy):
    images, sources = pictures(), {p: rng(1) for p in (0.0, 0.3, 1.0)}
    results = {p: diff_augment(images, policy, noise=noise, p=p) for p, noise in sources.items()}
    assert torch.equal(results[0.0], images)
    states = [noise.get_state() for noise in sources.values()]
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


# the chance that a drawn transform leaves an image as it was: one of 8 orientations, of 3 x 3 shifts at 8 px
@pytest.mark.parametrize(("name", "idle"), [("blit", 1 / 8), ("translation", 1 / 9), ("cutout", 0), ("color", 0)])
def test_p_is_the_share_of_transformed_images(name, idle):
    images = pictures(4000)
    n_coins = 3 if name == "color" else 1
    for p in (0.3, 1.0):
        wanted = 1 - (1 - p * (1 - idle)) ** n_coins
        assert changed(images, [name], p).float().mean() == pytest.approx(wanted, abs=0.03 if wanted < 1 else 0)


def test_color_draws_from_the_ranges_of_the_paper():
    images = pictures(3000, dtype=torch.float64)
    result = diff_augment(images, ["color"], noise=rng(0))
    # contrast and saturation leave the mean alone, saturation leaves the grey alone
    brightness = (result - images).mean(dim=(1, 2, 3))
    grey, grey_before = result.mean(1), images.mean(1)
    contrast = grey.std(dim=(1, 2)) / grey_before.std(dim=(1, 2))
    colour = ((result[:, 0] - result[:, 1]) / (images[:, 0] - images[:, 1])).median(dim=1).values
    colour = colour.flatten(1).median(dim=1).values
    for values, low, high in [(brightness, -0.5, 0.5), (contrast, 0.5, 1.5), (colour / contrast, 0.0, 2.0)]:
        assert values.min() == pytest.approx(low, abs=0.01)
        assert values.max() == pytest.approx(high, abs=0.01)
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.05)


def test_translation_reaches_every_shift_up_to_an_eighth():
    images = torch.zeros(3000, 3, 16, 16)
    images[:, :, 8, 8] = 1
    spots = diff_augment(images, ["translation"], noise=rng(0))[:, 0].nonzero()[:, 1:]
    shifts, counts = (spots - 8).unique(dim=0, return_counts=True)
    assert {tuple(shift) for shift in shifts.tolist()} == set(itertools.product(range(-2, 3), repeat=2))
    assert counts.min() > 3000 / 25 / 2


@pytest.mark.parametrize("size", [8, 10])
def test_cutout_is_half_the_size_and_centred_anywhere(size):
    blank = diff_augment(torch.ones(4000, 3, size, size), ["cutout"], noise=rng(0))[:, 0] == 0
    heights = blank.any(dim=2).sum(dim=1)
    side = int(size / 2 + 0.5)
    assert heights.min() == (side + 1) // 2
    assert heights.max() == side
    # the centre lies on each of the lines 0..size (0..size - 1 for an odd side) equally often
    n_places = size + 1 - side % 2
    covered = [sum(top <= y < top + side for top in range(-(side // 2), n_places - side // 2)) for y in range(size)]
    share = blank.any(dim=2).float().mean(dim=0)
    np.testing.assert_allclose(share, np.array(covered) / n_places, atol=0.04)


def test_each_image_draws_its_own_and_the_seed_decides():
    images = pictures(1, size=16).repeat(20, 1, 1, 1)
    first, again, other = (diff_augment(images, POLICIES, noise=rng(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    flat = first.flatten(1)
    assert (torch.cdist(flat, flat) + torch.eye(20) * 99).min() > 1


# ---------------------------------------------------------------- types, memory, devices


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", POLICIES)
def test_the_type_is_kept_and_the_memory_is_channels_last(dtype, name):
    exact = diff_augment(pictures(dtype=torch.float64), [name], noise=rng(0))
    result = diff_augment(pictures(dtype=torch.float64).to(dtype), [name], noise=rng(0))
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(result.double(), exact, atol=4 * torch.finfo(dtype).eps)


def test_the_order_in_memory_and_autocast_change_nothing():
    images = pictures()
    wanted = diff_augment(images, POLICIES, noise=rng(0))
    assert torch.allclose(diff_augment(images.contiguous(), POLICIES, noise=rng(0)), wanted, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(diff_augment(images, POLICIES, noise=rng(0)), wanted)


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_every_device_gives_the_same(device):
    result = diff_augment(pictures().to(device), POLICIES, noise=rng(0))
    assert result.device.type == device
    assert torch.allclose(result.cpu(), diff_augment(pictures(), POLICIES, noise=rng(0)), atol=1e-6)


# ---------------------------------------------------------------- the controller


def test_modes_set_what_is_applied():
    images, noise = pictures(), rng(0)
    before = noise.get_state()
    assert Augmentation("none", images_to_full=100)(images, noise) is images
    assert torch.equal(noise.get_state(), before)
    always = Augmentation("diffaugment", ["cutout", "color"], images_to_full=100)
    assert torch.equal(always(images, rng(2)), diff_augment(images, ["color", "cutout"], noise=rng(2)))
    adaptive = controlled()
    assert torch.equal(adaptive(images, noise), images)  # p starts at 0, where it draws as it always does
    assert not torch.equal(noise.get_state(), before)
    adaptive.p = 0.5
    assert torch.equal(adaptive(images, rng(2)), diff_augment(images, adaptive.policy, noise=rng(2), p=0.5))


def test_p_follows_a_sequence_computed_by_hand():
    adaptive, path = controlled(), []
    # ten images a call: the share of positive scores in four calls, and so r_t = 2 * share - 1
    for positive in [10, 10, 10, 10, 8, 8, 8, 9, 8, 8, 8, 8, 5, 5, 5, 5]:
        adaptive.observe(torch.tensor([3.0] * positive + [-0.1] * (10 - positive)))
        path.append(adaptive.p)
    # r_t = 1, .65, .6 and 0 against .6; 40 images of 100 move p by .4
    np.testing.assert_allclose(path, [0, 0, 0, 0.4, 0.4, 0.4, 0.4, 0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.4, 0.0])
    assert adaptive.signal == 0


def test_p_stays_between_0_and_1():
    adaptive = controlled()
    for score, ends in [(1.0, (0.4, 0.8, 1.0, 1.0)), (-1.0, (0.6, 0.2, 0.0, 0.0))]:
        for end in ends:
            for _ in range(4):
                adaptive.observe(torch.full((10,), score))
            assert adaptive.p == pytest.approx(end)


@pytest.mark.parametrize(("mode", "p"), [("none", 0), ("diffaugment", 1)])
def test_other_modes_record_the_signal_and_keep_p(mode, p):
    augmentation = Augmentation(mode, images_to_full=10)
    for _ in range(4):
        augmentation.observe(torch.tensor([1.0, 2.0, 3.0, -1.0]))
    assert augmentation.signal == 0.5
    assert augmentation.p == p


def test_a_wasserstein_critic_is_judged_by_the_midpoint():
    real, fake = torch.tensor([4.0, 3.0, 2.0, -1.0]), torch.tensor([0.0, 1.0, -1.0, -4.0])
    # means 2 and -1, midpoint .5: three real scores above it
    for scale, shift in [(1, 0), (0.01, -70), (30, 500)]:
        adaptive = controlled()
        for _ in range(4):
            adaptive.observe(real * scale + shift, fake * scale + shift)
        assert adaptive.signal == 0.5
    balanced = torch.tensor([2.0, 1.0, -0.5])  # a classifier that errs alike on both sides: the midpoint is 0
    both = controlled(), controlled()
    for _ in range(4):
        both[0].observe(balanced)
        both[1].observe(balanced, -balanced)
    assert both[0].signal == both[1].signal == pytest.approx(1 / 3)


def test_a_restored_controller_has_the_same_future():
    scores = torch.randn(40, 8, generator=rng(0)) + 0.9
    first = controlled(images_to_full=300)
    for row in scores[:18]:  # in the middle of four
        first.observe(row)
    second = controlled(images_to_full=300)
    second.restore(json.loads(json.dumps(first.state())))
    paths = [[], []]
    for path, augmentation in zip(paths, (first, second), strict=True):
        for row in scores[18:]:
            augmentation.observe(row)
            path.append((augmentation.p, augmentation.signal))
    assert paths[0] == paths[1]
    assert len(set(paths[0])) > 3


def test_scores_leave_no_graph_behind():
    adaptive = controlled()
    adaptive.observe(torch.ones(3, requires_grad=True) * 2, torch.ones(3, requires_grad=True))
    assert set(map(type, adaptive.state().values())) == {float}


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"mode": "sometimes"}, "augmentation is 'sometimes'"),
        ({"policy": ["color", "rotation"]}, "rotation.*must be a list of one or more of blit, color"),
        ({"policy": "cutouts"}, "'cutouts'"),
        ({"policy": []}, "one or more"),
        ({"target": 0}, "target is 0"),
        ({"target": 1.0}, "target is 1.0"),
        ({"target": float("nan")}, "target is nan"),
        ({"images_to_full": 0}, "images_to_full is 0"),
    ],
)
def test_bad_knobs_are_one_sentence(knobs, words):
    with pytest.raises(BadInput, match=words) as caught:
        Augmentation(**{"mode": "adaptive", "images_to_full": 100, **knobs})
    assert "\n" not in str(caught.value)


def test_an_unknown_transform_is_refused_where_it_is_applied():
    with pytest.raises(BadInput, match="spin"):
        diff_augment(pictures(), ["spin"], noise=rng(0))
