"""Visual styles: what is done to a letter drawn large, how it is moved about, and what is done to the small picture."""

from collections.abc import Callable
from math import pi

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

SIDE = 28
TINY = 18
SHIFT = 0.15  # of half the side
Sharp = Callable[[Tensor], Tensor]  # of letters (n, 56, 56)
Style = Callable[[Tensor, Generator], Tensor]  # of pictures (n, SIDE, SIDE)


def moved(images: Tensor, dice: Generator, turn: float = 20, slant: float = 0.3, least: float = 0.65) -> Tensor:
    """Return pictures (n, SIDE, SIDE): each turned by up to `turn` degrees, slanted, scaled and shifted at random."""

    def random(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), generator=dice)

    angle, scale, stretch, leaning = (
        random(-turn, turn) * pi / 180,
        random(least, 1.05),
        random(0.9, 1.1),
        random(-slant, slant),
    )
    sine, cosine, across, down = angle.sin(), angle.cos(), scale * stretch, scale / stretch
    rows = torch.stack(
        [
            torch.stack([cosine / across, (leaning * cosine - sine) / across, random(-SHIFT, SHIFT)], 1),
            torch.stack([sine / down, (leaning * sine + cosine) / down, random(-SHIFT, SHIFT)], 1),
        ],
        1,
    )
    grid = F.affine_grid(rows, [len(images), 1, 2 * SIDE, 2 * SIDE], align_corners=False)
    sampled = F.grid_sample(images[:, None], grid, align_corners=False)
    return F.avg_pool2d(sampled, 2)[:, 0]


def grainy(images: Tensor, dice: Generator, strength: float = 0.08) -> Tensor:
    """Add a little noise, as every picture has."""
    return (images + strength * torch.randn(images.shape, generator=dice)).clamp(0, 1)


def _thicker(images: Tensor, width: int = 5) -> Tensor:
    return F.max_pool2d(images[:, None], width, 1, width // 2)[:, 0]


def _outline(images: Tensor) -> Tensor:
    return _thicker(images, 5) - images


def _smooth(images: Tensor, times: int) -> Tensor:
    for _ in range(times):
        images = F.avg_pool2d(images[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    return images


def _across() -> Tensor:
    return torch.arange(SIDE).expand(SIDE, SIDE)


def _negative(images: Tensor, dice: Generator) -> Tensor:
    return 1 - images


def _blurred(images: Tensor, dice: Generator) -> Tensor:
    return _smooth(images, 4)


def _noisy(images: Tensor, dice: Generator) -> Tensor:
    """Blots behind and over the letter."""
    blots = _smooth(torch.rand(images.shape, generator=dice), 1)
    return torch.maximum(images, ((blots - 0.5) * 1.5 + 0.15).clamp(0, 1))


def _mirrored(images: Tensor, dice: Generator) -> Tensor:
    return images.flip(2)


def _tiny(images: Tensor, dice: Generator) -> Tensor:
    """Two thirds as large, somewhere near the middle."""
    small = F.interpolate(images[:, None], (TINY, TINY), mode="bilinear", antialias=True)[:, 0]
    padded = F.pad(small, (0, SIDE - TINY, 0, SIDE - TINY))
    places = torch.randint(3, SIDE - TINY - 2, (len(images), 2), generator=dice).tolist()
    return torch.stack([image.roll(tuple(place), (0, 1)) for image, place in zip(padded, places, strict=True)])


def _dotted(images: Tensor, dice: Generator) -> Tensor:
    return images * ((_across() + _across().T) % 2)


def _striped(images: Tensor, dice: Generator) -> Tensor:
    """In front of slanting stripes that start anywhere."""
    phase = 2 * pi * torch.rand(len(images), 1, 1, generator=dice)
    stripes = 0.5 + 0.5 * ((_across() + _across().T) * (2 * pi / 9) + phase).sin()
    return torch.maximum(images, 0.55 * stripes)


def _turned(images: Tensor, dice: Generator) -> Tensor:
    return images.rot90(1, (1, 2))


def _faint(images: Tensor, dice: Generator) -> Tensor:
    return 0.25 + 0.5 * images


def _upended(images: Tensor, dice: Generator) -> Tensor:
    return images.flip(1)


def _embossed(images: Tensor, dice: Generator) -> Tensor:
    """Lit from the upper left."""
    return 0.5 + 0.5 * (images - images.roll((2, 2), (1, 2)))


def _checkered(images: Tensor, dice: Generator) -> Tensor:
    """Bright and dark change places in two quarters."""
    board = (_across() // 14 + _across().T // 14) % 2
    return (images - board.float()).abs()


def _wavy(images: Tensor, dice: Generator) -> Tensor:
    """Each row slides sideways, as in water."""
    slides = (3 * (torch.arange(SIDE) * (2 * pi / 14)).sin()).round().int().tolist()
    return torch.stack([images[:, row].roll(slide, 1) for row, slide in enumerate(slides)], 1)


def _pixelated(images: Tensor, dice: Generator) -> Tensor:
    return F.avg_pool2d(images[:, None], 2)[:, 0].repeat_interleave(2, 1).repeat_interleave(2, 2)


def _squeezed(images: Tensor, dice: Generator) -> Tensor:
    """Half as high."""
    return F.pad(F.avg_pool2d(images[:, None], (2, 1))[:, 0], (0, 0, SIDE // 4, SIDE // 4))


def _rolled(images: Tensor, dice: Generator) -> Tensor:
    """The corners meet in the middle."""
    return images.roll((SIDE // 2, SIDE // 2), (1, 2))


SHARP: dict[str, Sharp] = {"outline": _outline, "thick": _thicker}
STYLES: dict[str, Style] = {
    "blurred": _blurred,
    "dotted": _dotted,
    "mirrored": _mirrored,
    "negative": _negative,
    "noisy": _noisy,
    "striped": _striped,
    "tiny": _tiny,
    "turned": _turned,
    # for the held tasks
    "checkered": _checkered,
    "embossed": _embossed,
    "faint": _faint,
    "pixelated": _pixelated,
    "rolled": _rolled,
    "squeezed": _squeezed,
    "upended": _upended,
    "wavy": _wavy,
}
