"""Time the GANs: a step of each at 64 px and the way of images into memory, ours against plain loops.

Run it alone, ``python benchmarks/gan.py``, on an idle machine: two to five minutes on two cores.  The plain loops
(``gan_plain.py``) are given their batches in memory; our steps draw theirs, and note the norms of gradients besides.
The last line is one JSON object of the ratios.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from gan_plain import Plain, begin, gaps, note_batch
from PIL import Image
from timing import Row, alternate, convolution_rate, print_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torch.utils.flop_counter import flop_registry
from torchvision import datasets, transforms

from stda import data
from stda.compute import Compute, rng, setup
from stda.generators import create
from stda.generators.adversarial.batches import Batches
from stda.generators.adversarial.training import update_average
from stda.images import ImageSet

SIZE = 64  # px
THREADS = 2
LAZY = 16  # critic steps per R1 penalty
KNOBS = {
    "dcgan": {"mode": "per-class", "width": 64, "batch_size": 64},
    # the paper's width; a batch of 64 takes four times as long
    "wgan": {"width": 64, "n_critic": 1, "batch_size": 16},
    "pggan": {"max_channels": 128, "channel_base": 2048, "batch_size": 16},  # a quarter of the paper's channels
}
CHECK_BATCH = 8  # images per batch when ours and the plain loop are compared
# how far losses and gradients may be from the plain loop's, relatively; its own float32 is 3e-4 from float64
LIKE_FLOAT32, LIKE_BF16 = 5e-3, 0.25
N_IMAGES, BATCH = 512, 64  # of the input pipeline
DRAWS = 200  # about as long as the loader takes for all files: a few draws would measure how threads wake up
FILE_SIZES = {"input pipeline, files of 600x450 px": (600, 450), "input pipeline, files of 64x64 px": (64, 64)}


def phantoms(n: int) -> ImageSet:
    """Return n drawn lesions."""
    table = data.describe("phantom", n_images=n, seed=0).assign(split="train")
    pictures = data.pictures("phantom", "", table["image_id"].tolist(), size=SIZE, n_images=n, seed=0)
    return ImageSet(pictures, table)


class CountFlops(TorchDispatchMode):
    """Count the arithmetic of convolutions and matrix products (FlopCounterMode refuses a gradient of a gradient)."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204 (torch's signature)
        out, count = func(*args, **(kwargs or {})), flop_registry.get(func._overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=out) if count else 0
        return out


def limit(step: Callable[[], object], rate: float) -> float:
    """Return the seconds that the convolutions and matrix products of a step would take at the machine's rate."""
    with CountFlops() as counter:
        step()
    return counter.total / rate


def check_equal(name: str, compute: Compute, train: ImageSet) -> None:
    """Stop unless a step of ours has the plain loop's losses and gradients, exactly in float32 and nearly as timed."""
    for precision, near in (("float32", LIKE_FLOAT32), (compute.precision, LIKE_BF16)):
        knobs = KNOBS[name] | {"batch_size": CHECK_BATCH}
        found = gaps(create(name, compute=replace(compute, precision=precision), **knobs), train)
        print(f"{name}, {precision}: away from the plain loop by", *(f"{key} {gap:.1e}" for key, gap in found.items()))
        if not max(found.values()) <= near:
            raise SystemExit(f"{name} in {precision} is further from the plain loop than {near}.")


def whole_step(name: str, compute: Compute, train: ImageSet, rate: float) -> Row:
    """Time a step of a GAN: critic and generator, and for the progressive GAN the averaged weights."""
    check_equal(name, compute, train)
    gan = create(name, compute=compute, **KNOBS[name])
    training = begin(gan, train)
    plain, batch = Plain.like(gan, training), note_batch(gan, training)

    def reference() -> None:
        plain.step(batch)
        if name == "pggan":
            plain.update_average()

    def ours() -> None:
        gan.advance(training)
        if name == "pggan":
            networks = training.networks
            update_average(networks["average"], networks["generator"], decay=gan.ema_decay, step=training.step)

    return Row(f"{name} step, batch {gan.batch_size}", *alternate(reference, ours), limit(ours, rate))


def critic_steps(compute: Compute, train: ImageSet, rate: float) -> tuple[Row, Row]:
    """Time the critic's step of the WGAN with gradient penalty, and ours with R1 at every 16th step instead."""
    check_equal("wgan", compute, train)
    gan = create("wgan", compute=compute, **KNOBS["wgan"])
    lazy = create("wgan", compute=compute, **KNOBS["wgan"], penalty="r1", penalty_every=LAZY)
    training, lazy_training = begin(gan, train), begin(lazy, train)
    plain, batch = Plain.like(gan, training), note_batch(gan, training)

    exact = partial(gan.advance_critic, training, penalise=True)
    with_r1, without = (partial(lazy.advance_critic, lazy_training, penalise=wanted) for wanted in (True, False))
    reference, ours, slow, fast = alternate(lambda: plain.critic_step(batch), exact, with_r1, without)
    mean, what = lambda x, y: (x + (LAZY - 1) * y) / LAZY, f"batch {gan.batch_size}"
    return (
        Row(f"wgan critic step, {what}", reference, ours, limit(exact, rate)),
        Row(
            f"the same with R1 every {LAZY} steps, mean",
            reference,
            mean(slow, fast),
            mean(limit(with_r1, rate), limit(without, rate)),
        ),
    )


def pipeline(what: str, file_size: tuple[int, int], train: ImageSet, folder: Path) -> Row:
    """Time a batch of images: JPEG files decoded, resized and flipped by two workers, against draws from memory."""
    for picture, label, name in zip(train.images, train.labels, train.table["image_id"], strict=True):
        path = folder / label / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).resize(file_size, Image.Resampling.BICUBIC).save(path, quality=90)
    steps = [transforms.Resize(SIZE), transforms.CenterCrop(SIZE)] if min(file_size) != SIZE else []
    steps += [transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip(), transforms.ToTensor()]
    files = datasets.ImageFolder(folder, transforms.Compose([*steps, transforms.Normalize([0.5] * 3, [0.5] * 3)]))
    loader = DataLoader(files, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    batches = Batches(train, train.classes, sampling="balanced", noise=rng(0))
    n_batches = len(train) // BATCH

    def reference() -> None:
        for images, _ in loader:
            assert images.shape == (BATCH, 3, SIZE, SIZE)

    def ours() -> None:
        for _ in range(DRAWS):
            batches.draw(BATCH)

    plain, drawn = alternate(reference, ours)
    return Row(f"{what}, batch {BATCH}", plain / n_batches, drawn / DRAWS)


def pipelines(train: ImageSet) -> list[Row]:
    """Time the input from files as the archive has them, and from files that were resized beforehand."""
    rows = []
    for what, file_size in FILE_SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(pipeline(what, file_size, train, Path(folder)))
    return rows


def main() -> None:
    """Measure, print the table, and the ratios as the last line."""
    compute = setup(threads=THREADS)
    facts = ", ".join(f"{key} {value}" for key, value in compute.describe().items())
    print(f"GANs at {SIZE} px; {facts}")
    train, rate = phantoms(N_IMAGES), convolution_rate(compute, channels=128, side=32, batch=32)
    dcgan = whole_step("dcgan", compute, train, rate)
    critic, lazy = critic_steps(compute, train, rate)
    pggan = whole_step("pggan", compute, train, rate)
    from_archive, from_small = pipelines(train)
    print_table([dcgan, critic, lazy, pggan, from_archive, from_small])
    for what, row in {"600x450": from_archive, "64x64": from_small}.items():
        print(f"Images per second: {BATCH / row.reference:.0f} from files of {what} px, {BATCH / row.ours:.0f} drawn.")
    named = {"dcgan_step": dcgan, "wgan_critic_step": critic, "wgan_critic_step_lazy_r1": lazy, "pggan_step": pggan}
    named["input_pipeline"] = from_small  # the stricter one: files that somebody has resized already
    print(json.dumps({name: round(row.ratio, 2) for name, row in named.items()}))


if __name__ == "__main__":
    main()
