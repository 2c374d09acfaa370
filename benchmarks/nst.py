"""Time style transfer: one loss evaluation, the way to an equal loss, and the feed-forward network.

Run it alone, ``python benchmarks/nst.py``, on an idle machine: up to five minutes on two cores.  The encoder has
VGG19's geometry and random (He) weights: the numbers are about time, no picture is meant to be looked at.  The last
line is one JSON object of the ratios.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
from timing import Row, alternate, convolution_rate, print_table
from torch import nn
from torch.nn import functional
from torchvision.models import vgg19

from stda import data
from stda.compute import Compute, setup
from stda.encoders import Encoder, layer_ends
from stda.generators.style.adain import EPSILON, FeedForward
from stda.generators.style.decoder import UpConv
from stda.generators.style.engine import Engine, Recipe
from stda.generators.style.minimise import minimise, minimise_coarse_to_fine

SIZE = 224  # px
THREADS = 2
EVALUATIONS = 40  # of the loss, for one image
USUAL = {"channels": 256, "side": 56, "batch": 1}  # VGG19's most usual convolution
N_PICTURES = 8  # by the feed-forward network, per timing
LIKE_FLOAT32, LIKE_BF16 = 1e-4, 0.02  # how far our losses may be from the reference's, relatively
SAME_WAY_FLOAT32, SAME_WAY_BF16 = 0.9999, 0.97  # least cosine between our gradient and the reference's


@dataclass
class Case:
    """What is timed: an encoder, one pair of pictures, and the machine."""

    encoder: Encoder
    content: np.ndarray
    style: np.ndarray
    recipe: Recipe
    compute: Compute
    scales: dict[str, float]

    def engine(self, precision: str | None = None) -> Engine:
        compute = replace(self.compute, precision=precision or self.compute.precision)
        return Engine(self.encoder, self.recipe, compute, scales=self.scales)


class Keep(nn.Module):
    """Hands features on and keeps them, as the loss modules of the PyTorch tutorial do."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.features = features
        return features


class Tutorial:
    """The plain loop's losses: float32, one pair, the whole network from plain modules, targets once per pair.

    They are the same functions as the engine's (:func:`check_equal` holds them to it).
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        ends = {position: name for name, position in case.encoder.layer_ends.items()}
        self.kept: dict[str, Keep] = {}
        self.model = nn.Sequential()
        for position, layer in enumerate(case.encoder.trunk):
            plain = nn.ReLU(inplace=False) if isinstance(layer, nn.ReLU) else copy.deepcopy(layer)
            self.model.append(plain)
            name = ends.get(position)
            if name in (*case.encoder.style_layers, case.encoder.content_layer):
                self.kept[name] = Keep()
                self.model.append(self.kept[name])
        self.model.to(case.compute.device, memory_format=torch.contiguous_format).requires_grad_(False)
        with torch.no_grad():
            self.content = self.features(self.tensor(case.content))[case.encoder.content_layer]
            found = self.features(self.tensor(case.style))
            self.grams = {name: self.gram(found[name]) for name in case.encoder.style_layers}

    def tensor(self, picture: np.ndarray) -> torch.Tensor:
        return (
            torch.from_numpy(picture / np.float32(127.5) - 1)
            .permute(2, 0, 1)[None]
            .contiguous()
            .to(self.case.compute.device)
        )

    def features(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.model(x * self.case.encoder.gain + self.case.encoder.bias)
        return {name: keep.features for name, keep in self.kept.items()}

    @staticmethod
    def gram(features: torch.Tensor) -> torch.Tensor:
        flat = features.reshape(features.shape[1], -1)
        return flat @ flat.T / flat.shape[1]

    def losses(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the weighted losses of ``(1, 3, H, W)`` in [-1, 1]."""
        recipe, scales, encoder = self.case.recipe, self.case.scales, self.case.encoder
        found = self.features(x)
        content = scales[encoder.content_layer] ** 2 * (found[encoder.content_layer] - self.content).square().sum()
        style = torch.zeros((), device=x.device)
        for name in encoder.style_layers:
            gap = functional.mse_loss(self.gram(found[name]), self.grams[name])
            style = style + scales[name] ** 4 * gap / 4 / len(encoder.style_layers)
        pixels = x * 127.5
        right = pixels[..., :-1, 1:] - pixels[..., :-1, :-1]
        down = pixels[..., 1:, :-1] - pixels[..., :-1, :-1]
        varied = (right.square() + down.square()).pow(1.25).sum()
        return {
            "content": recipe.content_weight * content,
            "style": recipe.style_weight * style,
            "tv": recipe.tv_weight * varied,
        }


def make_case(compute: Compute) -> Case:
    """Build the network and draw a benign and a malignant lesion, the same at every run."""
    torch.manual_seed(0)
    trunk = vgg19(weights=None).features.eval()
    for layer in trunk:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    provenance = {"name": "vgg19", "source": "random, for timing", "sha256": "", "normalisation": "imagenet"}
    encoder = Encoder("vgg19", trunk, layer_ends("vgg19", trunk), provenance, SIZE).to(compute.device)
    table = data.describe("phantom", n_images=100, seed=0)
    pair = [table.loc[table["label"] == label, "image_id"].iloc[0] for label in ("NV", "MEL")]  # benign, malignant
    content, style = data.pictures("phantom", "", pair, size=SIZE, n_images=100, seed=0)
    scales = Engine(encoder, Recipe(), replace(compute, precision="float32")).calibrate([content, style])
    return Case(encoder, content, style, Recipe(), compute, scales)


def convolution_flops(layers: Iterable[nn.Module], side: int = SIZE) -> Iterator[int]:
    """Yield the forward FLOPs of each convolution of a chain of layers that begins at ``side`` px."""
    for layer in layers:
        if isinstance(layer, UpConv):  # 4x4 instead of 3x3, at a quarter of the positions
            yield 2 * layer.weight.numel() * 16 // 9 * side**2
            side *= 2
        elif isinstance(layer, nn.Conv2d):
            yield 2 * layer.weight.numel() * side**2
        elif isinstance(layer, nn.MaxPool2d):
            side //= 2


def gradient(losses: Callable[[torch.Tensor], dict[str, torch.Tensor]], x: torch.Tensor) -> torch.Tensor:
    """Evaluate the total loss and return its gradient."""
    return torch.autograd.grad(sum(losses(x).values()).sum(), x)[0]


def check_equal(reference: Callable, ours: Callable, x: torch.Tensor, near: float, same_way: float) -> None:
    """Stop unless every loss is within a relative tolerance of the reference's and the gradients point the same way."""
    expected, found = reference(x), ours(x)
    for part, value in expected.items():
        gap = abs(found[part].item() / value.item() - 1)
        if not gap <= near:
            raise SystemExit(f"The {part} loss is {gap:.2e} away from the reference's, more than {near}.")
    cosine = functional.cosine_similarity(*(gradient(losses, x).flatten() for losses in (reference, ours)), dim=0)
    if not cosine >= same_way:
        raise SystemExit(f"The gradient's cosine with the reference's is {cosine:.4f}, less than {same_way}.")


def per_evaluation(case: Case) -> Row:
    """Time one evaluation of the loss and its gradient, the tutorial's way against the engine's."""
    tutorial, engine, exact = Tutorial(case), case.engine(), case.engine("float32")
    noise = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(case.compute.device)
    x = (engine.tensor(case.content) + 0.2 * noise).requires_grad_()

    def evaluation(engine: Engine) -> Callable:
        target = engine.target(("content", case.content), [("style", case.style, 1.0)])
        return lambda x: engine.losses(x, [target])

    ours = evaluation(engine)
    check_equal(tutorial.losses, evaluation(exact), x, LIKE_FLOAT32, SAME_WAY_FLOAT32)
    check_equal(tutorial.losses, ours, x, LIKE_BF16, SAME_WAY_BF16)
    seconds = alternate(lambda: gradient(tutorial.losses, x), lambda: gradient(ours, x))
    there_and_back = 2 * sum(convolution_flops(engine.trunk.chain))  # the gradient for x takes as many
    return Row("one loss evaluation", *seconds, there_and_back / convolution_rate(case.compute, **USUAL))


def tutorial_loop(case: Case, tutorial: Tutorial) -> torch.Tensor:
    """Return the picture of the PyTorch tutorial's loop: torch's L-BFGS on the pixels, clamped before every evaluation.

    As there, the loop stops when an L-BFGS call has brought the evaluations above their number.
    """
    x = tutorial.tensor(case.content).clone().requires_grad_()
    optimiser, evaluations = torch.optim.LBFGS([x]), 0

    def closure() -> torch.Tensor:
        nonlocal evaluations
        evaluations += 1
        with torch.no_grad():
            x.clamp_(-1, 1)
        optimiser.zero_grad()
        total = sum(tutorial.losses(x).values())
        total.backward()
        return total

    while evaluations < EVALUATIONS:
        optimiser.step(closure)
    return x.detach().clamp(-1, 1)


def our_loop(engine: Engine, case: Case) -> tuple[list[float], list[torch.Tensor]]:
    """Return, half size first, every picture tried at full size and the seconds after which its loss was known."""
    begun, times, tried = time.perf_counter(), [], []

    def loss_at(size: tuple[int, int]) -> Callable:
        target = engine.target(("content", case.content), [("style", case.style, 1.0)], size=size)

        def loss(x: torch.Tensor, rows: list[int]) -> dict[str, torch.Tensor]:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if size == (SIZE, SIZE):
                times.append(time.perf_counter() - begun)
                tried.append(x.detach())
            return engine.losses(x, [target])

        return loss

    list(minimise_coarse_to_fine(loss_at, engine.tensor(case.content), iterations=EVALUATIONS // 20))
    return [*times[1:], time.perf_counter() - begun], tried


def to_equal_loss(case: Case) -> Row:
    """Time the tutorial's loop of 40 evaluations against ours until its loss is reached.

    Both final pictures are judged by the same function, the tutorial's losses in float32 of pictures clamped to the
    range of pixels.  Ours are kept as they are tried, and judged after the clock has stopped.  Random layers are kind
    to the tutorial: they weigh all frequencies alike; with a trained SqueezeNet ours needs a tenth of the evaluations.
    """
    tutorial, engine = Tutorial(case), case.engine()

    def total(x: torch.Tensor) -> float:
        with torch.no_grad():
            return sum(tutorial.losses(x.clamp(-1, 1)).values()).item()

    reference_seconds, our_seconds = [], []
    for _ in range(2):
        begun = time.perf_counter()
        final = tutorial_loop(case, tutorial)
        reference_seconds.append(time.perf_counter() - begun)
        goal = total(final)
        seconds, tried = our_loop(engine, case)
        needed = next((i for i, x in enumerate(tried) if total(x) <= goal), None)
        if needed is None:
            raise SystemExit(f"Ours did not reach the tutorial's loss of {goal:.4g} in {len(tried)} evaluations.")
        our_seconds.append(seconds[needed])
    what = f"to the tutorial's loss ({EVALUATIONS} evaluations, ours {needed + 1} after 12 at half size)"
    return Row(what, statistics.median(reference_seconds), statistics.median(our_seconds))


def plain_transfer(case: Case, network: FeedForward) -> torch.Tensor:
    """Return the picture of a feed-forward network by the paper's formula and plain layers, in float32."""

    def run(layers: Iterable[nn.Module], x: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            if isinstance(layer, UpConv):
                x = functional.interpolate(x, scale_factor=2, mode="nearest")
            if isinstance(layer, nn.Conv2d):
                x = functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="reflect"), layer.weight, layer.bias)
            else:
                x = layer(x)
        return x

    def encode(picture: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = case.engine().tensor(picture) * case.encoder.gain + case.encoder.bias
        x = network.scales[network.layer] * run(copy.deepcopy(case.encoder.trunk[: network.depth]), x)
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
        return x, mean, (variance + EPSILON).sqrt()

    (x, mean, deviation), (_, style_mean, style_deviation) = encode(case.content), encode(case.style)
    return run(network.decoder, (x - mean) / deviation * style_deviation + style_mean).clamp(-1, 1)


@torch.no_grad()
def check_picture(case: Case, network: FeedForward, near: float) -> None:
    """Stop unless a network's picture is the plain one's, to a share of the values' mean size."""
    expected = plain_transfer(case, network)
    found = network.transfer([("content", case.content)], [[("style", case.style)]])
    gap = ((found - expected).abs().mean() / expected.abs().mean()).item()
    if not gap <= near:
        raise SystemExit(f"The feed-forward picture is {gap:.2e} away from the plain one, more than {near}.")


def feedforward(case: Case) -> Row:
    """Time a picture by 40 evaluations of our own optimisation against one pass of the feed-forward network.

    As in an image data base: the contents are new, the style's statistics are kept.  The decoder is hardly trained.
    """
    engine, names, style = case.engine(), count(), ("style", case.style)
    pictures = [case.content, case.style]
    for precision, near in (("float32", LIKE_FLOAT32), (case.compute.precision, LIKE_BF16)):
        network = FeedForward(case.encoder, compute=replace(case.compute, precision=precision))
        network.fit(lambda ids: [pictures[int(i)] for i in ids], ["0", "1"], steps=1, batch_size=1, crop=64, seed=0)
        check_picture(case, network, near)
    target = engine.target(("content", case.content), [(*style, 1.0)])

    def optimise() -> None:
        start = engine.tensor(case.content)
        list(minimise(lambda x, rows=None: engine.losses(x, [target]), start, iterations=EVALUATIONS // 20))

    def transfer() -> None:
        contents = [(f"new {next(names)}", case.content) for _ in range(N_PICTURES)]
        network.transfer(contents, [[style]] * N_PICTURES)

    slow, fast = alternate(optimise, transfer, repeats=3)
    flops = sum(convolution_flops(network.trunk.chain[: network.depth]))
    flops += sum(convolution_flops(network.decoder, SIZE // network.stride))
    return Row("one picture, feed-forward", slow, fast / N_PICTURES, flops / convolution_rate(case.compute, **USUAL))


MEASURES = {"per_evaluation": per_evaluation, "to_equal_loss": to_equal_loss, "feedforward": feedforward}


def main() -> None:
    """Measure, print the table, and the ratios as the last line."""
    case = make_case(setup(threads=THREADS))
    facts = ", ".join(f"{key} {value}" for key, value in case.compute.describe().items())
    print(f"Style transfer at {SIZE} px, VGG19 geometry with random weights; {facts}")
    rows = {name: measure(case) for name, measure in MEASURES.items()}
    print_table(list(rows.values()))
    ours, limit = (1 / EVALUATIONS / seconds for seconds in (rows["per_evaluation"].ours, rows["per_evaluation"].limit))
    print(f"At {EVALUATIONS} evaluations: {ours:.2f} images per second; {limit:.2f} if there were only convolutions.")
    print(f"Feed-forward: {1 / rows['feedforward'].ours:.1f} images per second.")
    print(json.dumps({name: round(row.ratio, 2) for name, row in rows.items()}))


if __name__ == "__main__":
    main()
