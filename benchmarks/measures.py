"""Time the measures: Inception features, the Fréchet distance and KID, ours against the public tools.

Run it alone, ``python benchmarks/measures.py``, on an idle machine: four minutes on two cores.  The references are
torch-fidelity's feature extraction and KID, and the Fréchet distance with the matrix square root of the product of the
covariances as pytorch-fid has it.  Both Inception networks have the same random weights: the published ones are not
needed to time them.  The last line is one JSON object of the ratios.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import linalg
from threadpoolctl import threadpool_limits
from timing import Row, alternate, convolution_rate, print_table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torchvision.models.inception import Inception3

from stda.compute import Compute, setup
from stda.encoders import encode, load_inception
from stda.measure.fidelity import fid, kid_of_subsets

THREADS = 2
N_IMAGES, SIZE = 64, 64  # px, of the pictures whose features are computed
REFERENCE_BATCHES = (64, 8)  # torch-fidelity's own, and one that stays in the caches: the faster one counts
N_MANY, N_FEW, DIMENSIONS = 5000, 500, 2048
# of KID: fidelity tables compare at most 2,000 images a side; torch-fidelity's time does not depend on their number
KID_IMAGES = (2000, 5000)
SUBSETS, SUBSET_SIZE, CHECKED_SUBSETS = 100, 1000, 3
SLOW_REPEATS = 2  # of what takes ten seconds and more
LIKE_FLOAT32, LIKE_BF16, LIKE_FLOAT64 = 1e-5, 0.01, 1e-6  # how far values may be from the reference's, relatively


def save_weights(path: Path) -> None:
    """Write random weights of Inception that keep activations at one size from layer to layer."""
    torch.manual_seed(0)
    network = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.2)
    torch.save(network.state_dict(), path)


def require_equal(what: str, found: np.ndarray | float, expected: np.ndarray | float, near: float) -> None:
    """Stop unless two results agree to ``near``, relatively."""
    gap = float(np.linalg.norm(np.subtract(found, expected)) / np.linalg.norm(expected))
    print(f"{what}: away from the reference by {gap:.1e}")
    if not gap <= near:
        raise SystemExit(f"{what} is further from the reference than {near}.")


def features(compute: Compute, folder: Path) -> tuple[Row, Row]:
    """Time the features of pictures in memory: torch-fidelity's network against ours in float32 and in bf16."""
    path = folder / "inception.pth"
    save_weights(path)
    public = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    public, network = public.to(compute.device), load_inception(weights=str(path))
    pictures = np.random.default_rng(0).integers(0, 256, (N_IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    batches = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()

    def reference(batch_size: int) -> np.ndarray:
        with torch.no_grad():
            parts = [public(batch.to(compute.device))[0].cpu() for batch in batches.split(batch_size)]
        return torch.cat(parts).numpy()

    networks = {name: network.in_precision(name) for name in ("float32", "bf16")}
    ours = {name: partial(encode, networks[name], pictures, compute=compute) for name in networks}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # for the comparison only
        expected = reference(N_IMAGES)
    for (name, task), near in zip(ours.items(), (LIKE_FLOAT32, LIKE_BF16), strict=True):
        require_equal(f"features in {name}", task(), expected, near)
    tasks = [partial(reference, batch_size) for batch_size in REFERENCE_BATCHES]
    *references, exact, rounded = alternate(*tasks, *ours.values(), repeats=3)
    with FlopCounterMode(display=False) as counter:
        ours["float32"]()
    rows = []
    for name, seconds in (("float32", exact), ("bf16", rounded)):
        # the middle of the network; at 192 channels and 35 px
        rate = convolution_rate(replace(compute, precision=name), channels=192, side=35, batch=8)
        limit = counter.get_total_flops() / rate
        rows.append(Row(f"features of {N_IMAGES} images, {name}", min(references), seconds, limit))
    return rows[0], rows[1]


def draw_features(n: int, *, seed: int, shift: float) -> np.ndarray:
    """Return features like those of a network: positive, correlated, with a spectrum that decays."""
    mixing = np.random.default_rng(0).normal(size=(DIMENSIONS, DIMENSIONS)) / np.sqrt(DIMENSIONS)
    spectrum = 5 / np.sqrt(np.arange(1, DIMENSIONS + 1))
    drawn = np.random.default_rng(seed).normal(size=(n, DIMENSIONS)) * spectrum
    return np.abs(drawn @ mixing + shift).astype(np.float32)


def frechet_by_matrix_root(x: np.ndarray, y: np.ndarray) -> float:
    """Return the Fréchet distance as pytorch-fid does: covariances, and the square root of their product."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    difference, s_x, s_y = x.mean(axis=0) - y.mean(axis=0), np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(s_x @ s_y)
    return float(difference @ difference + np.trace(s_x) + np.trace(s_y) - 2 * np.trace(root).real)


def product_rate() -> float:
    """Return FLOP/s of a float64 matrix product."""
    a = np.random.default_rng(0).normal(size=(DIMENSIONS, DIMENSIONS))
    (seconds,) = alternate(lambda: a @ a)
    return 2 * DIMENSIONS**3 / seconds


def frechet(n: int, rate: float) -> Row:
    """Time the Fréchet distance of n images a side."""
    x, y = draw_features(n, seed=1, shift=0.0), draw_features(n, seed=2, shift=0.05)
    results: dict[str, float] = {}

    def keep(name: str, function: Callable[[np.ndarray, np.ndarray], float]) -> None:
        results[name] = function(x, y)

    tasks = partial(keep, "reference", frechet_by_matrix_root), partial(keep, "ours", fid)
    seconds = alternate(*tasks, repeats=SLOW_REPEATS)
    require_equal(f"Fréchet distance of {n} images", results["ours"], results["reference"], LIKE_FLOAT64)
    d = DIMENSIONS
    # covariances, Cholesky root, two products, eigenvalues; with few images a product and its singular values
    flops = 4 * n * d**2 + (1 / 3 + 4 + 4 / 3) * d**3 if n > d else 2 * n**2 * d + 8 / 3 * n**3
    return Row(f"Fréchet distance, {n} images, {d} dimensions", *seconds, flops / rate)


def kid(n: int, rate: float) -> Row:
    """Time the kernel inception distance over the same random subsets: torch-fidelity's float32, our float64."""
    x, y = draw_features(n, seed=1, shift=0.0), draw_features(n, seed=2, shift=0.05)
    settings = {"kid_subset_size": SUBSET_SIZE, "rng_seed": 0, "verbose": False}
    random = np.random.RandomState(0)  # torch-fidelity's rows, a side in turn
    drawn = [random.choice(n, SUBSET_SIZE, replace=False) for _ in range(2 * SUBSETS)]
    rows = np.array(drawn[0::2]), np.array(drawn[1::2])

    def public(dtype: type, subsets: int) -> float:
        sides = (torch.from_numpy(side.astype(dtype)) for side in (x, y))
        return kid_features_to_metric(*sides, kid_subsets=subsets, **settings)[KEY_METRIC_KID_MEAN]

    def ours() -> np.ndarray:
        return kid_of_subsets(x, y, *rows)

    expected = public(np.float64, CHECKED_SUBSETS)
    require_equal(f"KID of {n} images", ours()[:CHECKED_SUBSETS].mean(), expected, LIKE_FLOAT64)
    seconds = alternate(partial(public, np.float32, SUBSETS), ours, repeats=SLOW_REPEATS)
    # pairs within each side, half of them by symmetry, and between the sides
    flops = 2 * (2 * n**2) * (DIMENSIONS + SUBSETS)
    return Row(f"KID, {SUBSETS} subsets of {SUBSET_SIZE} of {n} images", *seconds, flops / rate)


def main() -> None:
    """Measure, print the table, and the ratios as the last line."""
    compute = setup(threads=THREADS)
    print("Measures;", ", ".join(f"{key} {value}" for key, value in compute.describe().items() if key != "precision"))
    with tempfile.TemporaryDirectory() as folder:
        exact, rounded = features(compute, Path(folder))
    with threadpool_limits(THREADS):
        rate = product_rate()
        many, few = frechet(N_MANY, rate), frechet(N_FEW, rate)
        kernels = [kid(n, rate) for n in KID_IMAGES]
    print_table([exact, rounded, many, few, *kernels])
    print("The limit is a 3x3 convolution in the same precision for features, a float64 matrix product for the rest.")
    named = {"features_bf16": rounded, "features_fp32": exact, "frechet_many": many, "frechet_few": few}
    named["kid"] = kernels[0]
    print(json.dumps({name: round(row.ratio, 2) for name, row in named.items()}))


if __name__ == "__main__":
    main()
