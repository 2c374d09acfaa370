"""Time attribution: ours against zennit and captum, on VGG11-BN at 64 and 224 px.

Run it alone, ``python benchmarks/explain.py``, on an idle machine: some minutes on two cores.  Weights are random, the
BatchNorms have statistics of their own.  All rows have the same images, targets and threads; reference and ours are
timed in turn (A B A B, medians), and no process-wide way to keep memory is switched on for either.

The references are what a careful user writes: evaluation mode, gradients of the input only, hooks set once and not per
batch.  zennit and captum's LRP get the network with BatchNorm merged beforehand (captum has no rule for it); zennit's
deep Taylor is ``ZPlus(zero_params="bias")`` with ``WSquare`` at the last layer, its LRP-epsilon ``Epsilon``.  Captum's
integrated gradients have the same steps and quadrature, its ``NoiseTunnel(Saliency)`` the same number of samples and
spread of noise; both compute all points of a batch at once, their default, and get torchvision's network as it is.
The limit is the arithmetic of ours at the rate of one convolution of the network.
The cosine is the smallest over images; for SmoothGrad, whose noise is drawn anew, it is that of two samples of the
mean and far from 1, so plain gradients are compared instead.  The last line is one JSON object of ratios and cosines.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from captum import attr
from captum.attr._utils.lrp_rules import EpsilonRule
from timing import Row, alternate, convolution_rate, print_table
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torchvision.models import vgg11_bn
from zennit.core import Composite
from zennit.rules import Epsilon, Norm, Pass, WSquare, ZPlus
from zennit.types import Activation, AvgPool

from stda.compute import Compute
from stda.explain import METHODS
from stda.explain.gradients import completeness_error
from stda.explain.subject import Subject

THREADS, REPEATS = 2, 5
N_CLASSES = 7
BATCHES = {64: 16, 224: 4}  # pixels of a side: images per batch
N_POINTS, N_AVERAGED = 32, 4  # steps or samples of each image, and images, of the methods that average
NOISE = 0.1  # share of the value range, which is 2
EPSILON = 1e-6


@dataclass
class Result:
    """What one comparison found: its line of the table and what shows that both compute the same thing."""

    row: Row
    cosine: float
    least: float  # the smallest cosine that counts as the same map
    notes: dict[str, float] = field(default_factory=dict)


class Operations(TorchDispatchMode):
    """Counts floating-point operations, also below ``autograd.grad``, which FlopCounterMode cannot follow."""

    total = 0

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        """Run one operation and add what it costs."""
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=out) if count else 0
        return out


def lively_network() -> nn.Module:
    """Return a VGG11-BN in evaluation mode with random weights, lively BatchNorm and positive logits."""
    torch.manual_seed(0)
    model = vgg11_bn(num_classes=N_CLASSES).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    nn.init.constant_(model.classifier[-1].bias, 1.0)  # deep Taylor explains positive logits only
    return model.requires_grad_(False)


def merged_network(model: nn.Module) -> nn.Module:
    """Return the network with BatchNorm merged into its convolutions and ReLUs out of place, as hooks need them."""
    model, layers = copy.deepcopy(model), []
    for layer in model.features:
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(layer)
    model.features = nn.Sequential(*layers)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


def pictures(n: int, size: int, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return smooth random images in [-1, 1] and the class of each one's largest logit."""
    coarse = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").tanh()
    with torch.no_grad():
        return images, model(images).argmax(dim=1)


@contextmanager
def zennit_map(model: nn.Module, kind: str, images: Tensor, target: Tensor) -> Iterator[Callable[[], Tensor]]:
    """Give zennit's map of a batch as a function, with its hooks in place."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]

    def rule(ctx: dict, name: str, module: nn.Module) -> object:
        if isinstance(module, Activation):
            return Pass()
        if isinstance(module, AvgPool):
            return Norm()
        if not isinstance(module, nn.Conv2d | nn.Linear):
            return None
        if kind == "lrp_epsilon":
            return Epsilon(epsilon=EPSILON)
        return WSquare(zero_params="bias") if module is last else ZPlus(zero_params="bias")

    def run() -> Tensor:
        x = images.clone().requires_grad_(True)
        logits = network(x)
        chosen = nn.functional.one_hot(target, N_CLASSES) * logits.detach()
        return torch.autograd.grad(logits, x, chosen)[0]

    with Composite(module_map=rule).context(model) as network:
        yield run


def captum_lrp(model: nn.Module, images: Tensor, target: Tensor) -> Callable[[], Tensor]:
    """Return captum's LRP-epsilon of a batch as a function; it sets its hooks by itself in every call."""

    def run() -> Tensor:
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.MaxPool2d | nn.AdaptiveAvgPool2d):
                module.rule = EpsilonRule(epsilon=EPSILON)
        return attr.LRP(model).attribute(images, target)

    return run


def ours(subject: Subject, method: str, images: Tensor, target: Tensor, **knobs: object) -> Callable[[], Tensor]:
    """Return our map of a batch as a function."""
    return lambda: METHODS[method].run(subject, subject.prepare(images), target, **knobs).detach().float()


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the smallest cosine of two sets of maps, over images."""
    return torch.cosine_similarity(a.double().flatten(1), b.double().flatten(1), dim=1).min().item()


def compare(what: str, reference: Callable, our: Callable, least: float, rate: float) -> Result:
    """Time two functions in turn and compare their maps; ``rate`` in FLOP/s tells what our arithmetic alone takes."""
    with Operations() as counter:
        mine = our()
    found = cosine(reference(), mine)
    return Result(Row(what, *alternate(reference, our, repeats=REPEATS), counter.total / rate), found, least)


def rate_of(size: int, precision: str = "float32") -> float:
    """Return the FLOP/s of a convolution in the middle of the network, for images of this size."""
    compute = Compute(torch.device("cpu"), precision, THREADS)
    return convolution_rate(compute, channels=256, side=size // 4, batch=BATCHES[size])


def compare_rules(model: nn.Module) -> dict[str, Result]:
    """Compare deep Taylor and LRP-epsilon with zennit, and the latter with captum."""
    merged, results = merged_network(model), {}
    subject, coarse = Subject(model), Subject(model, dtype=torch.bfloat16)
    for size, n in BATCHES.items():
        case = pictures(n, size, model)
        with zennit_map(merged, "deep_taylor", *case) as theirs:
            what, our = f"deep Taylor, {size} px, zennit", ours(subject, "deep_taylor", *case)
            results[f"deep_taylor_{size}_fp32"] = compare(f"{what}, float32", theirs, our, 0.9999, rate_of(size))
            if size == 224:
                our = ours(coarse, "deep_taylor", *case)
                results["deep_taylor_224_bf16"] = compare(
                    f"{what}, ours in bf16", theirs, our, 0.99, rate_of(size, "bf16")
                )
    our, rate = ours(subject, "lrp_epsilon", *case, epsilon=EPSILON), rate_of(size)
    with zennit_map(merged, "lrp_epsilon", *case) as theirs:
        results["lrp_epsilon_224_zennit"] = compare("LRP-epsilon, 224 px, zennit", theirs, our, 0.99, rate)
    theirs = captum_lrp(copy.deepcopy(merged), *case)
    results["lrp_epsilon_224_captum"] = compare("LRP-epsilon, 224 px, captum", theirs, our, 0.99, rate)
    return results


def compare_averages(model: nn.Module) -> dict[str, Result]:
    """Compare integrated gradients and SmoothGrad with captum's."""
    images, target = case = pictures(N_AVERAGED, 64, model)
    subject, integrated = Subject(model), attr.IntegratedGradients(model)

    def theirs() -> Tensor:
        return integrated.attribute(images, 0.0, target, n_steps=N_POINTS, method="gausslegendre")

    our = ours(subject, "integrated_gradients", *case, n_steps=N_POINTS)
    found = compare(f"integrated gradients, 64 px, {N_POINTS} steps, captum", theirs, our, 0.9999, rate_of(64))
    for name, run in {"captum": theirs, "ours": our}.items():
        found.notes[name] = completeness_error(model, images, run(), target, relative=True).median().item()

    tunnel = attr.NoiseTunnel(attr.Saliency(model))

    def noisy(stdevs: float = 2 * NOISE, n: int = N_POINTS) -> Tensor:
        return tunnel.attribute(images, nt_samples=n, stdevs=stdevs, target=target, abs=False)

    our = ours(subject, "smoothgrad", *case, n_samples=N_POINTS, noise=NOISE)
    smooth = compare(f"SmoothGrad, 64 px, {N_POINTS} samples, captum", noisy, our, 0.999, rate_of(64))
    smooth.notes["two draws"] = smooth.cosine
    smooth.cosine = cosine(noisy(0.0, 1), ours(subject, "smoothgrad", *case, n_samples=1, noise=0.0)())
    return {"integrated_gradients_64": found, "smoothgrad_64": smooth}


def main() -> None:
    """Measure, print the table and what the maps have in common, and ratios and cosines as the last line."""
    warnings.simplefilter("ignore", UserWarning)  # captum announces its hooks
    torch.set_num_threads(THREADS)
    model = lively_network()
    results = compare_rules(model) | compare_averages(model)
    print(f"Attribution of VGG11-BN on the CPU, {THREADS} threads, images per batch by size {BATCHES}")
    print_table([result.row for result in results.values()])
    print("\nSmallest cosine of the two maps of an image")
    for name, result in results.items():
        print(f"{name:<26}{result.cosine:.6f}")
    for name, error in results["integrated_gradients_64"].notes.items():
        print(f"Integrated gradients, error of completeness, median share of the difference, {name}: {error:.1e}")
    print(f"SmoothGrad, cosine of two draws of the noise: {results['smoothgrad_64'].notes['two draws']:.3f}")
    different = [name for name, result in results.items() if not result.cosine >= result.least]
    if different:
        raise SystemExit(f"These do not compute the same thing: {', '.join(different)}.")
    ratios = {name: round(result.row.ratio, 2) for name, result in results.items()}
    print(json.dumps(ratios | {f"{name}_cosine": round(result.cosine, 6) for name, result in results.items()}))


if __name__ == "__main__":
    main()
