import numpy as np
import pytest
import torch
from torch import nn

from stda import BadInput, encoders, measure
from stda.compute import Compute
from stda.data import phantom
from stda.encoders.perceptual import EPSILON
from stda.images import ImageSet, to_tensor

CPU = Compute(torch.device("cpu"), "float32", 1)
FACTS = {"name": "x", "source": "test", "sha256": "", "normalisation": "imagenet"}


def in_domain(seed=0, size=32):
    """Return an untrained network: what is tested is arithmetic, and random filters see pixels too."""
    torch.manual_seed(seed)
    trunk, head = encoders.in_domain_network(2)
    return encoders.InDomain(encoders.merge_batch_norm(trunk.eval()), head, ["a", "b"], size, FACTS)


def squeezenet(seed=0):
    from torchvision.models import squeezenet1_0

    torch.manual_seed(seed)
    trunk = squeezenet1_0(weights=None).features.eval()
    ends = encoders.layer_ends("squeezenet1_0", trunk)
    return encoders.Encoder("squeezenet1_0", trunk, ends, FACTS, encoders.MIN_FEATURE_SIZE)


def pictures(n, seed=0, size=32):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def lpips(encoder, one, two, names):
    """LPIPS with unit weights of two images, position by position, in float64."""
    x = to_tensor(np.stack([one, two]))
    if x.shape[-1] < encoder.min_size:
        side = (encoder.min_size, encoder.min_size)
        x = nn.functional.interpolate(x, size=side, mode="bilinear", align_corners=False)
    total = 0.0
    for seen in encoder.layers(x, names).values():
        a, b = seen.double().numpy()
        every = []
        for i in range(a.shape[1]):
            for j in range(a.shape[2]):
                unit = [v[:, i, j] / (np.sqrt((v[:, i, j] ** 2).sum()) + EPSILON) for v in (a, b)]
                every.append(((unit[0] - unit[1]) ** 2).sum())
        total += np.mean(every)
    return total


@pytest.mark.parametrize(("make", "grid", "size"), [(in_domain, 32, 32), (squeezenet, 64, 32), (in_domain, 9, 9)])
def test_on_a_fine_grid_it_is_lpips_without_learned_weights(make, grid, size):
    encoder, (one, two) = make(), pictures(2, size=size)
    if size < 32:
        encoder.min_size = size
    rows = encoders.embedding(encoder, compute=CPU, grid=grid)(np.stack([one, two]))["perceptual"].astype(float)
    expected = lpips(encoder, one, two, encoder.style_layers)
    assert ((rows[0] - rows[1]) ** 2).sum() == pytest.approx(expected, rel=2e-3)  # float16


@pytest.mark.parametrize("make", [in_domain, squeezenet])
def test_the_features_are_those_of_encode(make):
    encoder, images = make(), pictures(7)
    found = encoders.embedding(encoder, compute=CPU, batch_size=3)(images)
    np.testing.assert_allclose(
        found["features"], encoders.encode(encoder, images, compute=CPU, batch_size=3), rtol=1e-5, atol=1e-6
    )
    assert found["perceptual"].dtype == np.float16
    assert found["perceptual"].shape[0] == 7


def test_positions_are_averaged_to_the_grid():
    x = torch.zeros(2, 3, 8, 8)
    x[0, 0] = 5.0  # one channel is on everywhere, ten times as much changes nothing
    x[1, 0, :, :4], x[1, 1, :, 4:] = 50.0, 1.0  # in the right half it is another channel
    rows = encoders.perceptual_vectors([x], grid=2)
    assert rows.shape == (2, 12)
    assert ((rows[0] - rows[1]) ** 2).sum().item() == pytest.approx(0.5 * 2)  # half of the positions differ by 1 + 1
    assert not encoders.perceptual_vectors([torch.zeros(1, 3, 4, 4)], grid=2).any()  # a dark position is no number


def test_chosen_layers_and_impossible_input():
    encoder = in_domain()
    rows = encoders.embedding(encoder, compute=CPU, layers=["conv2_1"], grid=2)(pictures(2))["perceptual"]
    assert rows.shape == (2, 64 * 4)
    with pytest.raises(BadInput, match=r"no layer \['conv9'\]"):
        encoders.embedding(encoder, compute=CPU, layers=["conv9"])
    with pytest.raises(BadInput, match="no image to embed"):
        encoders.embedding(encoder, compute=CPU)(pictures(0))
    assert not any(module._forward_hooks for module in encoder.modules())  # nothing is left behind


def drawn(n, seed):
    table = phantom.describe(n, seed)
    return ImageSet(phantom.render(table, size=16), table)


def disguised(images):
    """Return copies in each disguise."""
    noise, levels = np.random.default_rng(0), images.astype(int)
    return {
        "exact": images,
        "turned and flipped": np.ascontiguousarray(np.rot90(images, 1, axes=(1, 2))[:, :, ::-1]),
        "noise": np.clip(levels + noise.normal(0, 4, images.shape).round(), 0, 255).astype(np.uint8),
    }


@pytest.fixture(scope="module")
def trained():
    """A network trained on another phantom, and a train fold with held-out images."""
    other = drawn(150, 77)
    other = ImageSet(other.images, other.table.assign(split="train"))
    network = encoders.train_in_domain(other, steps=20, seed=0, compute=CPU)
    return encoders.embedding(network, compute=CPU), drawn(200, 0), drawn(100, 1)


def test_a_generator_that_stores_its_training_set_is_caught_in_every_space(trained):
    """Pixels, features and perceptual space each catch exact, turned and slightly noisy copies; the attack too."""
    embed, train, val = trained
    stolen = {name: ImageSet(images, train.table.iloc[:60]) for name, images in disguised(train.images[:60]).items()}
    search = measure.CopySearch({"train": train, "val": val, **stolen}, embed, reference="train", held_out="val")
    copies = measure.copying_table(search).set_index(["space", "set"])
    attack = measure.membership_table(search, resamples=200)
    assert search.spaces == ["pixels", "features", "perceptual"]
    for space in search.spaces:
        for name in stolen:
            row = copies.loc[(space, name)]
            assert row["copying"], (space, name)
            assert row["rate"] > 0.9, (space, name)
            assert row["authenticity_high"] < copies.loc[(space, "val"), "authenticity_low"], (space, name)
    assert (attack["low"] > 0.5).all()


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_a_fresh_sample_of_the_phantom_passes_in_every_space(trained, seed):
    embed, train, val = trained
    sets = {"train": train, "val": val, "fresh": drawn(100, seed)}
    search = measure.CopySearch(sets, embed, reference="train", held_out="val", max_embedded=60)
    copies = measure.copying_table(search).set_index(["set", "space"])
    assert not copies["copying"].any()
    attack = measure.membership_table(search, resamples=200)
    fresh, known = copies.loc["fresh"], copies.loc["val"]
    assert (fresh["authenticity_low"] < known["authenticity_high"]).all()
    assert (fresh["authenticity_high"] > known["authenticity_low"]).all()
    assert attack["auc"].between(0.38, 0.62).all()
