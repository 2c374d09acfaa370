"""Feed-forward style transfer: its formulas against brute force, training, what is kept, files, bad input."""

import json

import numpy as np
import pytest
import torch

from stda import BadInput
from stda import encoders as E
from stda.compute import Compute
from stda.generators.adversarial.training import TrainingDiverged
from stda.generators.style import adain

FLOAT32, BF16 = (Compute(torch.device("cpu"), precision, 1) for precision in ("float32", "bf16"))
PROVENANCE = {"name": "in-domain", "source": "random, for tests", "sha256": "0" * 64, "normalisation": "half"}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_encoder(sha256="0" * 64):
    torch.manual_seed(0)
    trunk, head = E.in_domain_network(2)
    return E.InDomain(E.merge_batch_norm(trunk.eval()), head, ["a", "b"], 16, {**PROVENANCE, "sha256": sha256})


def picture(name, height=32, width=32):
    """A smooth random picture of its own colour for every name."""
    random = np.random.default_rng(int(name))
    small = random.normal(random.uniform(60, 190, 3), 30, (4, 4, 3)).transpose(2, 0, 1)[None]
    large = torch.nn.functional.interpolate(torch.tensor(small), size=(height, width), mode="bicubic")
    return large[0].permute(1, 2, 0).clamp(0, 255).numpy().astype(np.uint8)


def pictures(names):
    return [picture(name) for name in names]


IDS = [str(i) for i in range(12)]


@pytest.fixture(scope="module")
def fitted():
    engine = adain.FeedForward(make_encoder(), compute=FLOAT32)
    engine.history = engine.fit(pictures, IDS, steps=60, batch_size=4, seed=5)
    return engine


def styles(*names):
    return [[(name, picture(name))] for name in names]


def contents(*names):
    return [(name, picture(name)) for name in names]


def copied(engine, folder, compute):
    engine.save(folder)
    return adain.FeedForward.load(folder, make_encoder(), compute)


def test_moments_and_normalisation_against_brute_force():
    random = np.random.default_rng(0)
    content, style = random.normal(1, 2, (2, 3, 4, 5)), random.normal(-1, 1, (2, 3, 6, 2))
    own, other = adain.moments(torch.tensor(content)), adain.moments(torch.tensor(style))
    found = adain.normalise(torch.tensor(content), own, other, alpha=0.3)
    for n in range(2):
        for c in range(3):
            values = [content[n, c, y, x] for y in range(4) for x in range(5)]
            mean = sum(values) / 20
            deviation = (sum((v - mean) ** 2 for v in values) / 20 + 1e-5) ** 0.5
            assert own.mean[n, c, 0, 0].item() == pytest.approx(mean, rel=1e-12)
            assert own.deviation[n, c, 0, 0].item() == pytest.approx(deviation, rel=1e-12)
            styled = other.deviation[n, c] * (torch.tensor(content[n, c]) - mean) / deviation + other.mean[n, c]
            torch.testing.assert_close(found[n, c], 0.7 * torch.tensor(content[n, c]) + 0.3 * styled)


def test_full_strength_has_the_moments_of_the_style_and_none_is_the_content():
    torch.manual_seed(0)
    content, style = torch.randn(1, 4, 9, 9).double() * 3, torch.randn(1, 4, 5, 5).double() + 2
    own, other = adain.moments(content), adain.moments(style)
    full = adain.moments(adain.normalise(content, own, other, alpha=1.0))
    torch.testing.assert_close(full.mean, other.mean)
    torch.testing.assert_close(full.deviation, other.deviation, rtol=1e-5, atol=0)
    torch.testing.assert_close(adain.normalise(content, own, other, alpha=0.0), content)


def test_losses_against_numpy(fitted):
    x = torch.cat([as_tensor(name) for name in "1234"])
    with torch.no_grad():
        result, content, style = fitted._losses(x[:2], x[2:])
        seen = [
            {k: v.double().numpy() * fitted.scales[k] for k, v in fitted.trunk(part).items()} for part in (x, result)
        ]
    deep = fitted.layer

    def statistics(f):
        return f.mean(axis=(2, 3)), np.sqrt(f.var(axis=(2, 3)) + 1e-5)

    (mean, deviation), (style_mean, style_deviation) = (
        statistics(seen[0][deep][half]) for half in (slice(2), slice(2, 4))
    )
    wide = (..., None, None)
    target = (seen[0][deep][:2] - mean[wide]) / deviation[wide] * style_deviation[wide] + style_mean[wide]
    assert content.item() == pytest.approx(((seen[1][deep] - target) ** 2).mean(), rel=1e-4)
    expected = 0.0
    for layer in fitted.style_layers:
        for found, wanted in zip(statistics(seen[1][layer]), statistics(seen[0][layer][2:]), strict=True):
            expected += ((found - wanted) ** 2).mean()
    assert style.item() == pytest.approx(expected, rel=1e-4)


def test_features_have_unit_rms_and_the_layers_are_the_papers(fitted):
    squares = [
        [v.square().mean().item() for v in fitted._features(as_tensor(name), fitted.names).values()] for name in IDS
    ]
    np.testing.assert_allclose(np.mean(squares, axis=0), 1, rtol=1e-5)
    assert fitted.layer == "conv3_1"
    assert fitted.style_layers == ("conv1_1", "conv2_1", "conv3_1")
    vgg = E.LAYERS["vgg19"][0]
    assert vgg[-2] == "conv4_1"  # the default rule gives VGG the paper's layer


def as_tensor(name):
    return torch.tensor(picture(name)).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_training_learns_and_repeats(fitted):
    history = fitted.history
    assert list(history) == ["step", "loss", "content", "style"]
    assert history["loss"].tail(10).mean() < 0.3 * history["loss"].head(10).mean()
    np.testing.assert_allclose(history["loss"], history["content"] + 10 * history["style"], rtol=1e-5)

    records = []
    again = adain.FeedForward(make_encoder(), compute=FLOAT32)
    before = torch.random.get_rng_state()
    short = again.fit(pictures, IDS, steps=3, batch_size=2, seed=5, grid_every=3, callback=records.append)
    assert torch.random.get_rng_state().equal(before)
    engine = adain.FeedForward(make_encoder(), compute=FLOAT32)
    assert engine.fit(pictures, IDS, steps=3, batch_size=2, seed=5).equals(short)
    assert not engine.fit(pictures, IDS, steps=3, batch_size=2, seed=6).equals(short)
    assert [record["steps"] for record in records] == [3, 3, 3]
    assert ["grid" in record for record in records] == [False, False, True]
    assert records[-1]["grid"].shape == (64, 96, 3)


def test_results_move_towards_the_style(fitted):
    names = [str(i) for i in range(12, 20)]  # pictures that training has not seen
    colour = {name: picture(name).mean(axis=(0, 1)) / 127.5 - 1 for name in names}
    gaps = {}
    for alpha in (0.0, 1.0):
        x = fitted.transfer(contents(*names), styles(*names[1:], names[0]), alpha=alpha)
        wanted = np.stack([colour[name] for name in (*names[1:], names[0])])
        gaps[alpha] = np.abs(x.mean(dim=(2, 3)).numpy() - wanted).mean()
    assert gaps[1.0] < 0.6 * gaps[0.0]


def test_a_picture_comes_out_the_same_alone_and_in_company(fitted, tmp_path):
    together = fitted.transfer(contents("20", "21", "22"), styles("1", "2", "1"), alpha=0.5)
    fresh = copied(fitted, tmp_path, FLOAT32)  # nothing kept
    for row, (name, style) in enumerate((("20", "1"), ("21", "2"), ("22", "1"))):
        alone = fresh.transfer(contents(name), styles(style), alpha=0.5)
        assert alone.equal(together[row : row + 1])
        assert alone.dtype == torch.float32
        assert alone.abs().max() <= 1
    fresh.chunk = 2  # as on a GPU
    fresh._contents, fresh._styles = adain.Kept(), adain.Kept()
    torch.testing.assert_close(
        fresh.transfer(contents("20", "21", "22"), styles("1", "2", "1"), alpha=0.5), together, rtol=0, atol=1e-4
    )


def test_several_styles_mix_in_proportion(fitted):
    one, pair = contents("20"), [[("1", picture("1")), ("2", picture("2", 40, 24))]]
    first = fitted.transfer(one, styles("1"))
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(fitted.transfer(one, pair, weights=(3, 0)), first, **close)
    torch.testing.assert_close(fitted.transfer(one, [styles("1")[0] * 2], weights=(1, 5)), first, **close)
    mixed = fitted.transfer(one, pair, weights=(1, 1))
    torch.testing.assert_close(fitted.transfer(one, pair, weights=(0.2, 0.2)), mixed, **close)
    # the paper's interpolation (eq. 15): decode the weighted sum of the normalised features
    features, *own = fitted._look_up(fitted._contents, one, None)[0]
    both = fitted._look_up(fitted._styles, pair[0], None)
    parts = [adain.normalise(features, adain.Moments(*own), adain.Moments(*s), 1.0) for s in both]
    with torch.no_grad():
        torch.testing.assert_close(fitted.decoder(sum(parts) / 2).clamp(-1, 1), mixed, **close)


def test_any_height_and_width(fitted):
    x = fitted.transfer([("a", picture("3", 37, 50)), ("b", picture("4", 37, 50))], styles("1", "2"))
    assert x.shape == (2, 3, 37, 50)
    assert x.is_contiguous()


def test_each_picture_is_encoded_once_while_it_is_kept(fitted, monkeypatch):
    fitted._contents, fitted._styles = adain.Kept(), adain.Kept()
    calls = []
    real = fitted.trunk.forward
    monkeypatch.setattr(fitted.trunk, "forward", lambda x: calls.append(len(x)) or real(x))
    for alpha in (0.2, 1.0):
        fitted.transfer(contents("20", "21"), styles("1", "1"), alpha=alpha)
    assert calls == [1, 1, 1]

    entry = fitted._contents.size // 2  # room for one content picture
    monkeypatch.setattr(adain, "KEPT_BYTES", entry)
    x = fitted.transfer(contents("22", "23", "24"), styles("1", "1", "1"))
    assert len(fitted._contents) == 1
    assert fitted._contents.size <= entry
    assert x.equal(fitted.transfer(contents("22", "23", "24"), styles("1", "1", "1")))


def test_bf16_is_close(fitted, tmp_path):
    engine = copied(fitted, tmp_path, BF16)
    pair = contents("20"), styles("1")
    assert (engine.transfer(*pair) - fitted.transfer(*pair)).abs().mean() < 0.01
    history = engine.fit(pictures, IDS, steps=2, batch_size=2, seed=5)
    assert np.isfinite(history.to_numpy()).all()
    assert engine.decoder[0].weight.dtype == torch.float32


def test_crops_of_pictures_of_any_size():
    engine = adain.FeedForward(make_encoder(), layer="conv2_1", compute=FLOAT32)

    def mixed(names):
        return [picture(name, 30 + int(name), 40) for name in names]

    records = []
    engine.fit(mixed, IDS, steps=1, batch_size=3, crop=16, seed=1, grid_every=1, callback=records.append)
    assert records[0]["grid"].shape == (48, 48, 3)
    assert engine.style_layers == ("conv1_1", "conv2_1")
    engine.fit(mixed, IDS, steps=1, batch_size=3, crop=200, seed=1, grid_every=1, callback=records.append)
    assert records[1]["grid"].shape[0] < 3 * 40  # crops no larger than the smallest picture
    with pytest.raises(BadInput, match="at least 4 pixels"):
        engine.fit(mixed, IDS, steps=1, batch_size=8, crop=3, seed=1)


def test_saved_and_loaded(fitted, tmp_path):
    loaded = copied(fitted, tmp_path, FLOAT32)
    pair = contents("20"), styles("1")
    assert loaded.transfer(*pair).equal(fitted.transfer(*pair))
    assert json.loads((tmp_path / "decoder.json").read_text())["encoder"]["sha256"] == "0" * 64
    with pytest.raises(BadInput, match="pass the same one"):
        adain.FeedForward.load(tmp_path, make_encoder("1" * 64), FLOAT32)
    (tmp_path / "decoder.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BadInput, match="damaged"):
        adain.FeedForward.load(tmp_path, make_encoder(), FLOAT32)
    with pytest.raises(BadInput, match="No trained decoder"):
        adain.FeedForward.load(tmp_path / "nowhere", make_encoder(), FLOAT32)


def test_bad_pairs_are_one_sentence(fitted):
    one, style = contents("20"), styles("1")
    cases = [
        ("0 content pictures", ([], []), {}),
        ("1 content pictures", (one, style * 2), {}),
        ("alpha is 1.5", (one, style), {"alpha": 1.5}),
        ("alpha is nan", (one, style), {"alpha": float("nan")}),
        ("2 weights came with 1 styles", (one, style), {"weights": (1, 1)}),
        ("0 weights came with 1", (one, style), {"weights": ()}),
        ("none negative", (one, style), {"weights": (-1,)}),
        ("not all zero", (one, style), {"weights": (0,)}),
        ("one for each style", (one, [[]]), {"weights": ()}),
        ("differ in size", ([*one, ("9", picture("9", 40))], style * 2), {}),
        ("at least 8 pixels", ([("9", picture("9", 6))], style), {}),
        ("float64", ([("9", np.zeros((32, 32, 3)))], style), {}),
    ]
    for sentence, pair, options in cases:
        with pytest.raises(BadInput, match=sentence):
            fitted.transfer(*pair, **options)


def test_bad_training_is_one_sentence():
    engine = adain.FeedForward(make_encoder(), compute=FLOAT32)
    with pytest.raises(BadInput, match="not trained"):
        engine.transfer(contents("1"), styles("2"))
    for options in ({"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"style_weight": -1.0}):
        with pytest.raises(BadInput, match="needs 2 pictures"):
            engine.fit(pictures, IDS, **{"steps": 1, "seed": 0, **options})
    with pytest.raises(BadInput, match="needs 2 pictures"):
        engine.fit(pictures, IDS[:1], steps=1, seed=0)
    with pytest.raises(BadInput, match="no layer"):
        adain.FeedForward(make_encoder(), layer="conv9_9", compute=FLOAT32)
    with pytest.raises(TrainingDiverged, match=r"^Feed-forward style transfer: .* lower\s+learning_rate"):
        engine.fit(pictures, IDS, steps=9, batch_size=2, learning_rate=1e30, seed=0)
    with pytest.raises(BadInput, match="not trained"):
        engine.transfer(contents("1"), styles("2"))
    dead = make_encoder()
    for parameter in dead.trunk.parameters():
        parameter.zero_()
    with pytest.raises(BadInput, match="are zero on these pictures"):
        adain.FeedForward(dead, compute=FLOAT32).fit(pictures, IDS, steps=1, seed=0)
