"""Draw one phantom lesion: numbers in, a picture that looks like dermoscopy out (numpy and Pillow only).

Colour is optical density: skin reflects ``exp(-density)``, and melanin, blood and deep pigment add density with their
own spectra, so tones mix as they do in skin.  White structures (veil, cysts, scale, scar) are blended over it.  Every
texture is looked up in one fixed periodic bank at a place and an angle that belong to the lesion: two views of a lesion
show the same skin, and the picture is defined at any resolution.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

BANK = 512  # texels along one period of the bank
TEXELS = 200.0  # texels per scene unit; the frame is 2 scene units wide
ANGLES = 1024  # resolution of the border table

# density per unit of pigment in red, green, blue
MELANIN = np.array([0.62, 1.02, 1.45], np.float32)
BLOOD = np.array([0.12, 0.95, 0.78], np.float32)
DEEP = np.array([1.15, 1.00, 0.50], np.float32)  # pigment or blood deep in the skin looks blue
VEIL = np.array([0.56, 0.60, 0.69], np.float32)
CYST = np.array([0.96, 0.90, 0.72], np.float32)
SCALE = np.array([0.95, 0.90, 0.84], np.float32)
SCAR = np.array([0.97, 0.86, 0.82], np.float32)


def draw(traits: dict[str, float], lesion_seed: int, view: int, *, hair: bool, ruler: bool, vignette: bool,
         size: int) -> np.ndarray:  # fmt: skip
    """Draw one view of one lesion.

    ``traits`` are the physical values of :data:`stda.data.phantom.TRAITS`; ``lesion_seed`` fixes what all views share
    (border, textures, skin), ``lesion_seed`` and ``view`` the camera (angle, zoom, shift, light) and the artefacts.
    Returns uint8 ``(size, size, 3)``; the same scene at every size.
    """
    lesion_rng = np.random.default_rng([lesion_seed, 0])
    view_rng = np.random.default_rng([lesion_seed, 1 + view])
    x, y = _grid(size)
    u, v, textures, inside, radius = _lesion(x, y, traits, lesion_rng, view_rng)
    density = _skin(textures, lesion_rng)
    density += _pigment(u, v, inside, radius, textures, traits, lesion_rng)
    picture = np.exp(-density)
    _whiten(picture, u, v, inside, radius, textures, traits, lesion_rng)
    _light(picture, x, y, view_rng)
    _artefacts(picture, view_rng, hair=hair, ruler=ruler, vignette=vignette)
    noise = view_rng.standard_normal((64, 64), dtype=np.float32)  # sensor noise, the same scene grain at every size
    index = np.arange(size) * 64 // size
    picture += 0.005 * noise[index][:, index]
    levels = np.clip(picture * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def draw_mask(traits: dict[str, float], lesion_seed: int, view: int, *, size: int) -> np.ndarray:
    """Return where :func:`draw` puts the lesion, uint8 ``(size, size)``, 255 inside its border."""
    lesion_rng, view_rng = np.random.default_rng([lesion_seed, 0]), np.random.default_rng([lesion_seed, 1 + view])
    *_, inside, _ = _lesion(*_grid(size), traits, lesion_rng, view_rng)
    return np.where(inside > 0.5, 255, 0).astype(np.uint8)


def _lesion(x: np.ndarray, y: np.ndarray, traits: dict[str, float], lesion_rng: np.random.Generator,
            view_rng: np.random.Generator) -> tuple[np.ndarray, ...]:  # fmt: skip
    """Return the lesion's own coordinates u, v, its textures, how much a point is inside, and its relative radius."""
    u, v = _camera(x, y, view_rng)
    textures = _look_up(u, v, lesion_rng)
    return u, v, textures, *_border(u, v, textures, traits, lesion_rng)


# ------------------------------------------------------------------------------------------------------- the textures


@lru_cache(maxsize=1)
def bank() -> np.ndarray:
    """Return the texture bank, float32 ``(11, BANK * BANK)``; fixed for ever, so that a seed means one picture."""
    rng = np.random.default_rng(20190)
    coarse, other, drift = _noise(rng, 0, 3), _noise(rng, 0, 3), _noise(rng, 0, 4)
    medium, fine = _noise(rng, 10, 5), _noise(rng, 55, 25)
    mesh, dots, cysts = _noise(rng, 34, 4), _noise(rng, 19, 6), _noise(rng, 13, 4)
    vessels, flakes, furrows = _noise(rng, 0, 10), _noise(rng, 24, 16), _noise(rng, 30, 9)
    lacunae = _noise(rng, 8, 3)
    layers = [
        coarse,
        other,
        medium,
        fine,
        _step(0.5, -0.6, mesh),  # dark lines around light holes
        _step(1.35, 2.0, dots),
        _step(1.55, 2.15, cysts),
        np.exp(-np.square(vessels / 0.07)) * _step(-0.2, 0.5, drift),  # broken thin lines
        _step(0.2, 2.2, 0.7 * flakes + 1.2 * drift + 0.25 * fine),
        np.exp(-np.square(furrows / 0.25)),
        _step(0.1, 0.7, lacunae),
    ]
    return np.stack(layers).astype(np.float32).reshape(len(layers), -1)


def _noise(rng: np.random.Generator, centre: float, width: float) -> np.ndarray:
    """Return periodic noise of unit variance whose frequencies lie around ``centre`` cycles per period."""
    rows = np.fft.fftfreq(BANK, 1 / BANK)[:, None]
    columns = np.fft.rfftfreq(BANK, 1 / BANK)[None]
    frequency = np.hypot(rows, columns)
    spectrum = np.fft.rfft2(rng.standard_normal((BANK, BANK)))
    spectrum *= np.exp(-0.5 * np.square((frequency - centre) / width))
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, (BANK, BANK))
    return noise / noise.std()


def _step(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """Rise smoothly from 0 at ``low`` to 1 at ``high`` (falls when ``high`` is the smaller)."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _rise(value: np.ndarray) -> np.ndarray:
    """Logistic function, safe for large arguments."""
    return 1 / (1 + np.exp(np.clip(-value, -30, 30)))


def _film(coarse: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return where the blue-white veil lies: cloudy, thickest near the middle."""
    return _step(-0.9, 1.5, coarse + 0.7 - radius)


def _look_up(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the bank at the lesion's own place and angle, ``(11, H, W)``."""
    angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(0, BANK, 2)
    c, s = np.float32(TEXELS * np.cos(angle)), np.float32(TEXELS * np.sin(angle))
    column = (c * u - s * v + np.float32(shift[0] + 8 * BANK)).astype(np.int32) & (BANK - 1)
    row = (s * u + c * v + np.float32(shift[1] + 8 * BANK)).astype(np.int32) & (BANK - 1)
    return np.take(bank(), row * BANK + column, axis=1)


# -------------------------------------------------------------------------------------------------- geometry, pigment


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in [-1, 1], float32 ``(size, size)`` each."""
    axis = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def _camera(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Turn, zoom and shift: the frame's coordinates in the lesion's own system."""
    angle, zoom = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.2)
    dx, dy = rng.normal(0, 0.09, 2)
    mirror = rng.choice([-1, 1])
    c, s = np.float32(np.cos(angle) / zoom), np.float32(np.sin(angle) / zoom)
    x, y = (x - np.float32(dx)) * np.float32(mirror), y - np.float32(dy)
    return c * x - s * y, s * x + c * y


def _border(u: np.ndarray, v: np.ndarray, textures: np.ndarray, traits: dict[str, float],
            rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return how much a point is inside the lesion (0..1) and its radius relative to the border (1 on it)."""
    stretch = np.float32(np.sqrt(traits["elongation"]))
    a, b = u / stretch, v * stretch
    # border radius over the angle: slow waves make it lopsided, fast ones ragged
    angle = np.linspace(-np.pi, np.pi, ANGLES, endpoint=False)
    waves = np.arange(1, 15)
    strength = np.where(waves <= 3, 0.17 * traits["asymmetry"], 0.085 * traits["irregularity"]) / np.sqrt(waves)
    strength[1] += 0.02
    amplitude, phase = rng.normal(0, 1, waves.size) * strength, rng.uniform(0, 2 * np.pi, waves.size)
    edge = 1 + (amplitude[:, None] * np.cos(waves[:, None] * angle + phase[:, None])).sum(0)
    edge = (traits["size"] * np.clip(edge, 0.45, 1.7)).astype(np.float32)
    at = ((np.arctan2(b, a) + np.float32(np.pi)) * np.float32(ANGLES / (2 * np.pi))).astype(np.int32) & (ANGLES - 1)
    radius = np.sqrt(a * a + b * b) / edge[at]
    ragged = np.float32(0.02 + 0.19 * traits["irregularity"])
    depth = 1 - radius + ragged * (0.45 * textures[2] + 0.6 * textures[1])
    inside = _rise(depth / np.float32(traits["softness"]))
    return inside, radius


def _skin(textures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the density of bare skin, ``(3, H, W)``: tone, uneven blood, fine furrows."""
    melanin = rng.uniform(0.04, 0.26) + 0.02 * textures[0] + 0.012 * textures[3] + rng.uniform(0.01, 0.06) * textures[9]
    blood = rng.uniform(0.08, 0.25) + 0.05 * textures[1] + 0.03 * textures[2] + rng.uniform(0, 0.12) * textures[7]
    return MELANIN[:, None, None] * melanin + BLOOD[:, None, None] * blood + np.float32(0.06)


def _pigment(u: np.ndarray, v: np.ndarray, inside: np.ndarray, radius: np.ndarray, textures: np.ndarray,
             traits: dict[str, float], rng: np.random.Generator) -> np.ndarray:  # fmt: skip
    """Return the density that the lesion adds, ``(3, H, W)``."""
    coarse, other, medium, fine, mesh, dots, _, vessels, _, _, lacunae = textures
    t = {name: np.float32(value) for name, value in traits.items()}
    direction = rng.uniform(0, 2 * np.pi)
    slope = (np.cos(direction, dtype=np.float32) * u + np.sin(direction, dtype=np.float32) * v) / t["size"]
    uneven = 1 + (0.10 + 0.30 * t["asymmetry"]) * (0.5 * coarse + 0.7 * slope) + 0.12 * medium + 0.06 * fine
    # dark blotches sit off the centre when the lesion is asymmetric
    blotch = _step(0.2, 1.4, 0.8 * other + 0.5 * medium + 1.2 * t["asymmetry"] * slope + 0.9 - 1.0 * radius)
    reticle = 1 + t["network"] * (0.95 * mesh - 0.5)
    melanin = inside * (t["melanin"] * np.clip(uneven, 0.15, None) * reticle + 1.5 * t["dark"] * blotch)
    melanin += inside * t["globules"] * (1.1 * dots)
    # blood: a flush that reaches beyond the border, vessels, sharply outlined red lakes
    flush = _rise((1.15 - radius) * np.float32(5))
    blood = t["red"] * (0.75 * flush + 0.12 * inside * medium) + 1.3 * t["vessels"] * np.sqrt(inside) * vessels
    lakes = t["purple"] * inside * (0.55 + 0.65 * lacunae)
    blood += 1.5 * lakes
    deep = 0.65 * lakes * (0.7 + 0.4 * coarse) + t["veil"] * inside * 0.6 * _film(coarse, radius)
    deep = np.clip(deep, 0, None)
    parts = zip((MELANIN, BLOOD, DEEP), (np.clip(melanin, 0, 2.6), np.clip(blood, 0, None), deep), strict=True)
    return sum(spectrum[:, None, None] * amount for spectrum, amount in parts)


def _whiten(picture: np.ndarray, u: np.ndarray, v: np.ndarray, inside: np.ndarray, radius: np.ndarray,
            textures: np.ndarray, traits: dict[str, float], rng: np.random.Generator) -> None:  # fmt: skip
    """Blend veil, cysts, scale and scar over the picture, in place."""
    coarse, _, medium, fine, _, _, cysts, _, flakes, _, _ = textures
    t = {name: np.float32(value) for name, value in traits.items()}
    off = (rng.normal(0, 0.15, 2) * traits["size"]).astype(np.float32)
    centre = np.exp(-(np.square(u - off[0]) + np.square(v - off[1])) / np.square(np.float32(0.47) * t["size"]))
    film = _film(coarse, radius)
    layers = (
        (VEIL, 0.6 * t["veil"] * inside * film),
        (SCAR, 0.95 * t["scar"] * centre * (0.85 + 0.12 * medium)),
        (CYST, 0.85 * t["cysts"] * inside * cysts),
        (SCALE, 0.80 * t["scale"] * _step(0.05, 0.8, inside) * np.clip(flakes * (0.85 + 0.2 * fine), 0, 1)),
    )
    for colour, alpha in layers:
        alpha = np.clip(alpha, 0, 0.95)
        picture += alpha * (colour[:, None, None] - picture)


# ------------------------------------------------------------------------------------------------- light and artefacts


def _light(picture: np.ndarray, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> None:
    """Exposure, white balance and an uneven lamp, in place."""
    gain = rng.uniform(0.92, 1.08) * np.exp(rng.normal(0, [0.025, 0.02, 0.06]))
    fall, (px, py) = rng.uniform(0, 0.10), rng.normal(0, 0.06, 2)
    lamp = 1 + px * x + py * y - fall * (x * x + y * y)
    picture *= lamp.astype(np.float32)
    picture *= gain.astype(np.float32)[:, None, None]


def _artefacts(picture: np.ndarray, rng: np.random.Generator, *, hair: bool, ruler: bool, vignette: bool) -> None:
    """Draw hair, ruler and the dark rim of the lens, in place."""
    size = picture.shape[-1]
    if hair:
        _blend(picture, *hair_layer(size, rng))
    if ruler:
        _blend(picture, *ruler_layer(size, rng))
    if vignette:
        picture *= rim(size, rng)


def hair_layer(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return how much a tuft of hairs covers, float32 ``(size, size)`` in 0..1, and its colour ``(3,)`` in 0..1."""
    tone = rng.uniform(0.05, 0.30) * np.array([1.25, 1.0, 0.8])
    return _hair(size, rng), tone


def ruler_layer(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return how much the marks of a ruler cover, float32 ``(size, size)`` in 0..1, and their colour ``(3,)``."""
    return _ruler(size, rng), np.full(3, 0.12)


def rim(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the share of light that the dark rim of the lens lets through, float32 ``(size, size)``."""
    x, y = _grid(size)
    edge, soft = rng.uniform(1.08, 1.34), rng.uniform(0.015, 0.06)
    dx, dy = rng.normal(0, 0.04, 2)
    distance = np.hypot(x - np.float32(dx), y - np.float32(dy))
    return (0.06 + 0.94 * _rise((np.float32(edge) - distance) / np.float32(soft))).astype(np.float32)


def _blend(picture: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> None:
    picture += alpha * (colour.astype(np.float32)[:, None, None] - picture)


def _hair(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the cover (0..1) of a tuft of curved hairs that lie roughly along one direction."""
    lines, along = [], rng.uniform(0, 2 * np.pi)
    for _ in range(int(rng.integers(4, 22))):
        angle, length = along + rng.normal(0, 0.45), rng.uniform(0.3, 1.3)
        step = 0.5 * length * np.array([np.cos(angle), np.sin(angle)])
        middle = rng.uniform(-1.1, 1.1, 2)
        bend = middle + rng.normal(0, 0.16, 2)
        t = np.linspace(0, 1, 9)[:, None]
        curve = (1 - t) ** 2 * (middle - step) + 2 * t * (1 - t) * bend + t**2 * (middle + step)
        lines.append((curve, rng.uniform(0.008, 0.022)))
    return 0.85 * _strokes(lines, size)


def _ruler(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the cover (0..1) of millimetre marks along one edge."""
    pitch, depth = rng.uniform(0.12, 0.2), rng.uniform(0.78, 0.95)
    lines = []
    for k, at in enumerate(np.arange(-1.05 + rng.uniform(0, pitch), 1.05, pitch)):
        reach = 0.16 if k % 5 == 0 else 0.08
        lines.append((np.array([[at, depth - reach], [at, depth]]), 0.014))
    lines.append((np.array([[-1.1, depth], [1.1, depth]]), 0.012))
    turn = rng.integers(4)
    return 0.8 * np.rot90(_strokes(lines, size), turn)


def _strokes(lines: list[tuple[np.ndarray, float]], size: int) -> np.ndarray:
    """Rasterise polylines (scene coordinates, width) with antialiasing, float32 ``(size, size)`` in 0..1."""
    from PIL import Image, ImageDraw

    fine = 4 if size < 192 else 2
    canvas = Image.new("L", (fine * size, fine * size))
    pen = ImageDraw.Draw(canvas)
    for points, width in lines:
        place = ((points + 1) * (0.5 * fine * size)).ravel().tolist()
        pen.line(place, fill=255, width=max(1, round(width * 0.5 * fine * size)), joint="curve")
    return np.asarray(canvas.reduce(fine), np.float32) / 255.0
