import pytest
import torch
import torch.nn.functional as F
from gan_cases import CPU, TINY, discs, started
from torch import nn

from stda import BadInput
from stda.generators import create
from stda.generators.adversarial.penalties import gradient_penalty
from stda.generators.wgan import DownBlock, LayerNorm, UpBlock, WCritic, WGenerator, channels_per_level


def test_depth_follows_the_resolution():
    assert channels_per_level(64, 1) == [8, 8, 4, 2, 1]
    assert channels_per_level(32, 1) == [4, 4, 2, 1]
    assert channels_per_level(128, 2) == [16, 16, 16, 8, 4, 2]


@pytest.mark.parametrize("size", [32, 64, 128])
def test_shapes(size):
    generator = WGenerator(size=size, width=4, latent=10, n_classes=3)
    critic = WCritic(size=size, width=4, n_classes=3)
    images = generator(torch.randn(2, 10), torch.tensor([0, 2]))
    assert images.shape == (2, 3, size, size)
    assert images.abs().max() <= 1
    score, logits = critic(images)
    assert score.shape == (2,)
    assert logits.shape == (2, 3)
    n_blocks = {32: 3, 64: 4, 128: 5}[size]
    assert len(generator.blocks) == len(critic.blocks) == n_blocks
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in critic.modules())


def test_the_label_replaces_the_first_latent_entries():
    generator = WGenerator(size=32, width=4, latent=10, n_classes=3).eval()
    z, label = torch.randn(1, 10), torch.tensor([1])
    other = torch.cat([torch.randn(1, 3), z[:, 3:]], dim=1)
    assert torch.equal(generator(z, label), generator(other, label))
    assert not torch.equal(generator(z, label), generator(z, torch.tensor([2])))
    with pytest.raises(BadInput, match="latent is 3; the label takes its first 3 entries"):
        WGenerator(size=32, width=4, latent=3, n_classes=3)


def test_layer_norm_against_torch():
    norm, x = LayerNorm(5), torch.randn(3, 5, 4, 4) * 7 + 2
    nn.init.normal_(norm.scale)
    nn.init.normal_(norm.shift)
    expected = F.layer_norm(x, (5, 4, 4)) * norm.scale.view(-1, 1, 1) + norm.shift.view(-1, 1, 1)
    assert torch.allclose(norm(x), expected, atol=1e-5)


def test_blocks_equal_their_plain_form():
    torch.manual_seed(0)
    x = torch.randn(4, 6, 8, 8)
    up = UpBlock(6, 3).eval()
    plain = F.interpolate(F.relu(up.norm1(x)), scale_factor=2)
    plain = F.conv2d(plain, up.conv1.weight, up.conv1.bias, padding=1)
    shortcut = F.conv2d(F.interpolate(x, scale_factor=2), up.shortcut.weight, up.shortcut.bias)
    assert torch.allclose(up(x), up.conv2(F.relu(up.norm2(plain))) + shortcut, atol=1e-5)
    down = DownBlock(6, 3)
    plain = F.relu(down.norm2(down.conv1(F.relu(down.norm1(x)))))
    plain = F.conv2d(plain, down.conv2.weight, down.conv2.bias, padding=1)
    assert torch.allclose(down(x), F.avg_pool2d(plain + down.shortcut(x), 2), atol=1e-5)


def test_an_image_s_score_does_not_depend_on_the_rest_of_the_batch():
    critic, x = WCritic(size=32, width=4, n_classes=2), torch.randn(6, 3, 32, 32)
    assert torch.allclose(critic(x)[0][:2], critic(x[:2])[0], atol=1e-5)


def test_critic_loss_is_the_sum_of_its_parts():
    gan = create("wgan", compute=CPU, penalty_weight=7.0, class_weight=0.5, **TINY["wgan"])
    history = gan.fit(discs(), steps=3, seed=0)
    parts = -history.wasserstein + 7 * history.penalty + 0.5 * history.d_class_loss
    assert history.d_loss.to_numpy() == pytest.approx(parts.to_numpy(), rel=1e-5)
    assert history.wasserstein.to_numpy() == pytest.approx((history.d_real - history.d_fake).to_numpy(), abs=1e-5)


def test_critic_takes_its_steps_per_generator_step():
    gan = create("wgan", compute=CPU, **(TINY["wgan"] | {"n_critic": 3}))
    training = started(gan, discs(), steps=2)
    training.step = 1
    gan.advance(training)
    steps = {key: int(next(iter(o.state.values()))["step"]) for key, o in training.optimizers.items()}
    assert steps == {"generator": 1, "critic": 3}


def test_gradient_of_the_penalty_in_bf16_agrees_with_float32():
    torch.manual_seed(0)
    critic = WCritic(size=32, width=8, n_classes=2)
    real, fake, mix = torch.rand(8, 3, 32, 32) - 0.5, torch.rand(8, 3, 32, 32), torch.rand(8)
    gradients = []
    for enabled in (False, True):
        critic.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            gradient_penalty(lambda x: critic(x)[0].float(), real, fake, mix).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in critic.parameters() if p.grad is not None]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.999
    assert (gradients[1].norm() / gradients[0].norm()).item() == pytest.approx(1, abs=0.02)
