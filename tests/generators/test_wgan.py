import pytest
import torch
import torch.nn.functional as F
from gan_cases import CPU, TINY, discs, started
from torch import nn

from stda import BadInput
from stda.generators import create
from stda.generators.adversarial.penalties import gradient_penalty
from stda.generators.wgan import DownBlock, LayerNorm, UpBlock, WCritic, WGenerator, channels_per_level


def test_defaults_are_the_paper_s():
    gan = create("wgan", compute=CPU)
    assert (gan.latent, gan.width, gan.batch_size, gan.n_critic) == (128, 64, 64, 5)
    assert (gan.penalty, gan.penalty_weight, gan.penalty_every, gan.class_weight) == ("gradient", 10.0, 1, 1.0)
    assert (gan.drift_weight, gan.fake_class_weight) == (0.0, 0.0)
    assert channels_per_level(64, gan.width) == [512, 512, 256, 128, 64]
    for name in ("generator", "critic"):
        optimizer = gan.make_optimizer(name, nn.Linear(1, 1))
        assert isinstance(optimizer, torch.optim.Adam)
        assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (1e-4, (0.0, 0.9))


def test_adam_of_the_critic_remembers_a_cycle_of_lazy_penalties():
    gan = create("wgan", compute=CPU, penalty_every=16)
    beta2 = {name: gan.make_optimizer(name, nn.Linear(1, 1)).defaults["betas"][1] for name in ("generator", "critic")}
    assert beta2["generator"] == 0.9
    assert beta2["critic"] ** 16 == pytest.approx(0.9)  # sixteen updates forget what one of the paper's forgets


def test_depth_follows_the_resolution():
    assert channels_per_level(32, 1) == [4, 4, 2, 1]
    assert channels_per_level(64, 1) == [8, 8, 4, 2, 1]
    assert channels_per_level(128, 2) == [16, 16, 16, 8, 4, 2]
    assert channels_per_level(256, 1) == [8, 8, 8, 8, 4, 2, 1]
    with pytest.raises(BadInput, match="wgan cannot make images of 48 px"):
        channels_per_level(48, 1)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_shapes(size):
    generator = WGenerator(size=size, width=4, latent=10, n_classes=3)
    critic = WCritic(size=size, width=4, n_classes=3)
    images = generator(torch.randn(2, 10), torch.tensor([0, 2]))
    assert images.shape == (2, 3, size, size)
    assert images.abs().max() <= 1
    score, logits = critic(images)
    assert score.shape == (2,)
    assert logits.shape == (2, 3)
    n_blocks = {32: 3, 64: 4, 128: 5, 256: 6}[size]
    assert len(generator.blocks) == len(critic.blocks) == n_blocks
    assert generator.linear.weight.shape == (4 * channels_per_level(size, 1)[0] * 4 * 4, 10)
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


def conv(w, name, x):
    """Convolve as the plain implementations below do, in float64, padded so that the size stays."""
    kernel = w[f"{name}.weight"]
    return F.conv2d(x, kernel, w[f"{name}.bias"], padding=kernel.shape[-1] // 2)


def batch_norm(w, name, x):
    mean, var = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
    x = (x - mean) / torch.sqrt(var + 1e-5)
    return F.relu(x * w[f"{name}.weight"].view(-1, 1, 1) + w[f"{name}.bias"].view(-1, 1, 1))


def layer_norm(w, name, x):
    x = F.layer_norm(x, x.shape[1:])
    return F.relu(x * w[f"{name}.scale"].view(-1, 1, 1) + w[f"{name}.shift"].view(-1, 1, 1))


def plain_generator(w, z, labels, n_classes):
    z = torch.cat([torch.eye(n_classes, dtype=z.dtype)[labels], z[:, n_classes:]], dim=1)
    x = (z @ w["linear.weight"].T + w["linear.bias"]).reshape(len(z), -1, 4, 4)
    for block in ("blocks.0", "blocks.1"):
        h = F.interpolate(batch_norm(w, f"{block}.norm1", x), scale_factor=2)
        h = batch_norm(w, f"{block}.norm2", conv(w, f"{block}.conv1", h))
        x = conv(w, f"{block}.conv2", h) + conv(w, f"{block}.shortcut", F.interpolate(x, scale_factor=2))
    return torch.tanh(conv(w, "to_rgb", batch_norm(w, "norm", x)))


def plain_critic(w, x):
    x = conv(w, "from_rgb", x)
    for block in ("blocks.0", "blocks.1"):
        h = conv(w, f"{block}.conv1", layer_norm(w, f"{block}.norm1", x))
        h = conv(w, f"{block}.conv2", layer_norm(w, f"{block}.norm2", h))
        x = F.avg_pool2d(h + conv(w, f"{block}.shortcut", x), 2)
    x = F.relu(x).mean(dim=(2, 3))
    return (x @ w["score.weight"].T + w["score.bias"])[:, 0], x @ w["classify.weight"].T + w["classify.bias"]


def go_down(weights, loss, rate):
    for weight, slope in zip(weights.values(), torch.autograd.grad(loss, list(weights.values())), strict=True):
        weight.data -= rate * slope


def plain_step(g, d, draws, *, n_critic, n_classes, rate):
    """Take one step of Gulrajani et al. 2017, algorithm 1, with a class head; real and fake in turn."""
    for _ in range(n_critic):
        real, real_labels, z, labels, mix = next(draws)
        fake = plain_generator(g, z, labels, n_classes).detach()
        between = (mix * real + (1 - mix) * fake).requires_grad_(True)
        (slope,) = torch.autograd.grad(plain_critic(d, between)[0].sum(), between, create_graph=True)
        penalty = (slope.square().sum(dim=(1, 2, 3)).sqrt() - 1).square().mean()
        score, logits = plain_critic(d, real)
        loss = plain_critic(d, fake)[0].mean() - score.mean() + 10 * penalty + F.cross_entropy(logits, real_labels)
        go_down(d, loss, rate)
    _, _, z, labels, _ = next(draws)
    score, logits = plain_critic(d, plain_generator(g, z, labels, n_classes))
    go_down(g, F.cross_entropy(logits, labels) - score.mean(), rate)


def draws_of(gan, training, *, steps):
    """Return what each update of the next steps will draw, in float64; the source of randomness stays where it is."""
    state, found = training.noise.get_state(), []
    for last in ([False] * gan.n_critic + [True]) * steps:
        # the generator's update, the last of a step, needs no real images
        real, real_labels = (torch.empty(0), None) if last else gan.reals(training, gan.batch_size)
        z, labels = gan.fakes(training, gan.batch_size)
        mix = torch.empty(0) if last else torch.rand(gan.batch_size, generator=training.noise)
        found.append((real.double(), real_labels, z.double(), labels, mix.double().view(-1, 1, 1, 1)))
    training.noise.set_state(state)
    return found


def test_two_steps_equal_a_plain_implementation_in_float64():
    # plain gradient descent: Adam would turn the rounding of a gradient near zero into a whole step
    rate, knobs = 1e-3, TINY["wgan"] | {"n_critic": 2, "batch_size": 8}
    gan = create("wgan", compute=CPU, **knobs)
    training = started(gan, discs(size=16), steps=2)
    networks = [training.networks[name] for name in ("generator", "critic")]
    plain = [{k: p.detach().double().clone().requires_grad_(True) for k, p in n.named_parameters()} for n in networks]
    start = [{k: p.detach().clone() for k, p in n.named_parameters()} for n in networks]
    draws = iter(draws_of(gan, training, steps=2))
    training.optimizers = {
        name: torch.optim.SGD(training.networks[name].parameters(), lr=rate) for name in training.optimizers
    }
    for training.step in (1, 2):
        gan.advance(training)
        plain_step(*plain, draws, n_critic=2, n_classes=2, rate=rate)
    for network, expected, before in zip(networks, plain, start, strict=True):
        way = max((expected[name] - before[name]).abs().max() for name in before)
        for name, weight in network.named_parameters():
            moved, should = weight - before[name], expected[name] - before[name]
            # relative to the way of the whole network: the bias before a BatchNorm moves by rounding only
            assert (moved - should).abs().max() < 1e-3 * way, name


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
