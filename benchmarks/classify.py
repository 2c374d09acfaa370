"""Time the training of classifiers: ours from cached arrays against the usual loop over picture files.

Run it alone, ``python benchmarks/classify.py``, on an idle machine: some minutes on two cores.  The usual loop is what
most published code has: JPEG files of the training size, decoded and augmented one by one with torchvision's transforms
in two DataLoader workers, float32, AdamW.  Ours is :func:`stda.classify.train_classifier` as the study calls it.  Both
have the same network, batch, threads, kinds of augmentation (flips, rotation, zoom, colour) and balanced sampling.
Each loop has a process of its own, because ours changes how its process keeps memory; a second row gives the usual
loop that advantage too.  The last line is one JSON object of the ratios to the usual loop as it is.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import Row, convolution_rate, print_table
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, WeightedRandomSampler
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets
from torchvision.transforms import v2

from stda import data
from stda.classify import build, train_classifier
from stda.classify.networks import Features
from stda.compute import Compute, keep_freed_memory, setup
from stda.images import ImageSet, to_tensor

THREADS = 2
# network, pixels of a side, images per batch, steps of a burst, files
TASKS = (("vgg8", 64, 64, 24, 512), ("vgg11_bn", 224, 16, 4, 96))
BURSTS = 3  # of each loop, in turn
SETTLING = 2  # steps at the beginning of a burst that are not counted
LIKE_FLOAT32, LIKE_BF16 = 1e-3, 0.1  # how far loss and gradient may be from the plain network's, relatively


def phantoms(n: int, size: int) -> ImageSet:
    """Return n drawn lesions of the train fold."""
    table = data.describe("phantom", n_images=n, seed=0).assign(split="train")
    pictures = data.pictures("phantom", "", table["image_id"].tolist(), size=size, n_images=n, seed=0)
    return ImageSet(pictures, table)


def write_files(train: ImageSet, folder: Path) -> ImageSet:
    """Write the images as JPEG files, one folder per class, and return them as the files hold them."""
    stored = np.empty_like(train.images)
    for i, (picture, row) in enumerate(zip(train.images, train.table.itertuples(), strict=True)):
        path = folder / row.label / f"{row.image_id}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path, quality=90)
        stored[i] = np.asarray(Image.open(path))
    return ImageSet(stored, train.table)


def files(folder: Path, *, augment: bool) -> datasets.ImageFolder:
    """Return the files as torchvision reads them, float32 in [-1, 1]."""
    changes = [
        v2.RandomHorizontalFlip(),
        v2.RandomAffine(180, scale=(0.9, 1.2), interpolation=v2.InterpolationMode.BILINEAR),
        v2.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.01),
    ]
    scale = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    return datasets.ImageFolder(folder, v2.Compose([*(changes if augment else []), *scale]))


def usual_network(network: str, *, n_classes: int, size: int) -> nn.Module:
    """Return the same network without our order of computation."""
    model = build(network, n_classes=n_classes, size=size)
    for name, module in list(model.named_modules()):
        if isinstance(module, Features):
            model.set_submodule(name, nn.Sequential(OrderedDict(module.named_children())))
    return model


def usual_loop(network: str, folder: Path, *, size: int, batch_size: int, device: torch.device) -> Iterator[float]:
    """Train in the usual way and yield the loss after every step, without end."""
    torch.manual_seed(0)
    pictures = files(folder, augment=True)
    share = 1 / np.bincount(pictures.targets)
    sampler = WeightedRandomSampler(share[pictures.targets], 10**6)
    loader = DataLoader(pictures, batch_size, sampler=sampler, num_workers=2)
    model = usual_network(network, n_classes=len(pictures.classes), size=size).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for images, wanted in loader:
        loss = functional.cross_entropy(model(images.to(device)), wanted.to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        yield loss.item()


def answer(calls: Connection, keep: bool, network: str, folder: Path, settings: dict) -> None:
    """Train in the usual way as many steps as asked for, again and again, and answer with the seconds of each."""
    torch.set_num_threads(THREADS)
    if keep:
        keep_freed_memory()
    steps = usual_loop(network, folder, **settings)
    while n := calls.recv():
        calls.send(burst(lambda: next(steps), n))
    steps.close()  # its workers stop


@contextmanager
def usual_process(*task: object) -> Iterator[Callable[[int], list[float]]]:
    """Give a function that trains so many steps in a fresh process and returns their seconds."""
    spawned = multiprocessing.get_context("spawn")
    here, there = spawned.Pipe()
    process = spawned.Process(target=answer, args=(there, *task))
    process.start()
    there.close()  # an end of the process is an EOFError here

    def run(n: int) -> list[float]:
        here.send(n)
        return here.recv()

    try:
        yield run
    finally:
        if process.is_alive():
            here.send(0)
        process.join()


def our_steps(network: str, train: ImageSet, *, batch_size: int, steps: int, compute: Compute) -> list[float]:
    """Train with ours and return the seconds of each step that is counted."""
    few = train.select(np.arange(8))
    val = ImageSet(few.images, few.table.assign(image_id="val " + few.table["image_id"], split="val"))
    marks: list[float] = []
    settings = {"batch_size": batch_size, "evaluate_every": 10**6, "classes": train.classes, "seed": 0}
    train_classifier(
        train, val, network=network, steps=steps, compute=compute,
        callback=lambda record: marks.append(time.perf_counter()), **settings,
    )  # fmt: skip
    return np.diff(marks)[SETTLING - 1 : -1].tolist()  # the last step is followed by a look at the validation fold


def require_equal(network: str, train: ImageSet, folder: Path, compute: Compute) -> None:
    """Stop unless both loops see the same pixels, and the same network has the same loss and gradient in both."""
    plain_files, names = files(folder, augment=False), train.table["image_id"].tolist()
    rows = np.linspace(0, len(train) - 1, 8).astype(int)
    place = {Path(path).stem: i for i, (path, _) in enumerate(plain_files.samples)}
    images = torch.stack([plain_files[place[names[i]]][0] for i in rows])
    wanted = torch.tensor([train.classes.index(train.labels[i]) for i in rows])
    gap = (images - to_tensor(train.images[rows])).abs().max().item()
    torch.manual_seed(0)
    plain = usual_network(network, n_classes=len(train.classes), size=train.size)
    found = [loss_and_gradient(plain, images, wanted, None)]
    ordered = build(network, n_classes=len(train.classes), size=train.size)
    ordered.load_state_dict(plain.state_dict())
    for precision in ("float32", "bf16"):
        ours = copy.deepcopy(ordered).to(memory_format=torch.channels_last)
        found.append(loss_and_gradient(ours, images, wanted, replace(compute, precision=precision)))
    gaps = [float((x - found[0]).norm() / found[0].norm()) for x in found[1:]]
    print(f"{network}: pixels differ by {gap:.1e}, loss and gradient by {gaps[0]:.1e} (float32), {gaps[1]:.1e} (bf16)")
    if gap > 1e-6 or not (gaps[0] <= LIKE_FLOAT32 and gaps[1] <= LIKE_BF16):
        raise SystemExit("The two loops do not compute the same thing.")


def loss_and_gradient(
    model: torch.nn.Module, images: torch.Tensor, wanted: torch.Tensor, compute: Compute | None
) -> torch.Tensor:
    """Return the loss and the gradient of the first and last layer's weights as one vector, without dropout."""
    model = copy.deepcopy(model).eval()
    if compute is None:
        logits = model(images)
    else:
        with compute.autocast():
            logits = model(images.to(memory_format=torch.channels_last))
    loss = functional.cross_entropy(logits.float(), wanted)
    loss.backward()
    kernels = [p.grad for p in model.parameters() if p.ndim > 1]
    return torch.cat([loss.detach().view(1), kernels[0].flatten(), kernels[-1].flatten()])


def burst(next_step: Callable[[], object], steps: int) -> list[float]:
    """Return the seconds of each of so many steps."""
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        next_step()
        seconds.append(time.perf_counter() - start)
    return seconds[SETTLING:]


def measure(network: str, size: int, batch_size: int, steps: int, n_files: int, compute: Compute) -> list[Row]:
    """Time a training step of one network, in turn the usual loop, the same with our way to keep memory, and ours."""
    settings, seconds = {"size": size, "batch_size": batch_size, "device": compute.device}, ([], [], [])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = write_files(phantoms(n_files, size), folder)
        require_equal(network, train, folder, compute)
        with (
            usual_process(False, network, folder, settings) as usual,
            usual_process(True, network, folder, settings) as keeping,
        ):
            for _ in range(BURSTS):
                for found, run in zip(seconds, (usual, keeping), strict=False):
                    found += run(steps + SETTLING)
                seconds[2].extend(
                    our_steps(network, train, batch_size=batch_size, steps=steps + SETTLING, compute=compute)
                )
    usual, keeping, ours = map(statistics.median, seconds)
    model = build(network, n_classes=len(train.classes), size=size)
    with FlopCounterMode(display=False) as counter:
        model(to_tensor(train.images[:batch_size])).sum().backward()
    rate = convolution_rate(compute, channels=128, side=size // 4, batch=batch_size)
    limit = counter.get_total_flops() / rate
    what = f"{network} at {size} px, batch {batch_size}"
    return [Row(what, usual, ours, limit), Row("  the usual loop keeps memory too", keeping, ours, limit)]


def main() -> None:
    """Measure, print the table, and the ratios as the last line."""
    compute = setup(threads=THREADS)
    print("Classifiers;", ", ".join(f"{key} {value}" for key, value in compute.describe().items()))
    rows = [measure(*task, compute) for task in TASKS]
    print_table([row for pair in rows for row in pair])
    print(json.dumps({f"{task[0]}_{task[1]}": round(row.ratio, 2) for task, (row, _) in zip(TASKS, rows, strict=True)}))


if __name__ == "__main__":
    main()
