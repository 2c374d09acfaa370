import numpy as np
import pytest
import torch
from gan_cases import CPU, TINY, discs
from torch import nn

from stda import BadInput
from stda.generators import create
from stda.generators.dcgan import DCDiscriminator, DCGenerator


@pytest.mark.parametrize("size", [32, 64, 128])
def test_shapes_and_the_paper_s_layers(size):
    generator = DCGenerator(size=size, width=4, latent=10, n_labels=0)
    discriminator = DCDiscriminator(size=size, width=4, n_labels=0)
    images = generator(torch.randn(2, 10), torch.tensor([0, 0]))
    assert images.shape == (2, 3, size, size)
    assert images.abs().max() <= 1
    assert discriminator(images, torch.tensor([0, 0])).shape == (2,)
    n_layers = {32: 4, 64: 5, 128: 6}[size]  # 64 px is the paper's; 32 px has one layer less
    kinds = (nn.ConvTranspose2d, nn.Conv2d)
    for network, kind in zip((generator, discriminator), kinds, strict=True):
        layers = [m for m in network.modules() if isinstance(m, kind)]
        assert len(layers) == n_layers
        assert all(layer.kernel_size == (4, 4) for layer in layers)
        assert layers[1].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in discriminator.modules()) == n_layers - 2  # not first, not last
    assert not isinstance(discriminator.layers[1], nn.BatchNorm2d)


def test_modes_and_what_the_networks_are_told():
    labels = torch.tensor([0, 1])
    conditional = DCGenerator(size=32, width=4, latent=10, n_labels=2).eval()
    z = torch.randn(1, 10).expand(2, 10)
    one, two = conditional(z, labels)
    assert not torch.equal(one, two)
    discriminator = DCDiscriminator(size=32, width=4, n_labels=2).eval()
    image = torch.randn(1, 3, 32, 32).expand(2, 3, 32, 32)
    assert discriminator(image, labels)[0] != discriminator(image, labels)[1]
    with pytest.raises(BadInput, match="mode is 'both'; it must be one of per-class, conditional"):
        create("dcgan", mode="both")


def test_one_model_per_class_shares_the_steps_and_sees_only_its_class():
    records = []
    train = discs(counts={"dark": 6, "light": 4, "none": 2})
    gan = create("dcgan", compute=CPU, **TINY["dcgan"])
    history = gan.fit(train, steps=8, seed=0, callback=records.append)
    assert history.groupby("model")["step"].count().to_dict() == {"dark": 2, "light": 3, "none": 3}
    assert [r["step"] for r in records] == list(range(1, 9))
    assert set(gan.models) == {"dark", "light", "none"}
    assert set(gan.split_by_model(train)["light"].labels) == {"light"}
    with pytest.raises(BadInput, match="steps is 2; dcgan trains 3 models"):
        gan.fit(train, steps=2, seed=0)
    together = create("dcgan", compute=CPU, mode="conditional", **TINY["dcgan"])
    assert set(together.fit(train, steps=3, seed=0)["model"]) == {"(all)"}
    assert together.generate(["none", "dark"], seed=0).labels.tolist() == ["none", "dark"]


def test_a_class_of_one_image_is_learnt():
    train = discs(counts={"dark": 1, "light": 1}, size=8)
    gan = create("dcgan", compute=CPU, width=8, latent=4, batch_size=8, learning_rate=2e-3)
    gan.fit(train, steps=300, seed=0)
    made = gan.generate(["dark"] * 8 + ["light"] * 8, seed=1).images.astype(float)
    centre = made[:, 3:5, 3:5].mean(axis=(1, 2, 3))
    assert np.abs(centre[:8] - 40).mean() < 40
    assert np.abs(centre[8:] - 200).mean() < 40
