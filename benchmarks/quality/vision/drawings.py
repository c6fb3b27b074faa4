"""What the tasks of shapes and of textures show."""

from collections.abc import Callable
from math import cos, pi, sin

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Generator, Tensor
from torch.nn import functional as F

from .glyphs import SIDE as LARGE
from .styles import SIDE

Point = tuple[float, float]


def _polygon(corners: int, inner: float = 1, turn: float = 0) -> list[Point]:
    """Return a regular polygon, or a star whose every second corner lies further in."""
    radii = [0.85 * (inner if k % 2 else 1) for k in range(corners)]
    angles = [2 * pi * k / corners - pi / 2 + turn for k in range(corners)]
    return [(radius * cos(angle), radius * sin(angle)) for radius, angle in zip(radii, angles, strict=True)]


def _mirror(half: list[Point]) -> list[Point]:
    return half + [(-x, y) for x, y in reversed(half)]


SHAPES: tuple[list[Point], ...] = (
    _polygon(40),
    _polygon(3),
    _polygon(4, turn=pi / 4),
    _polygon(6),
    _polygon(10, 0.4),
    _polygon(8, 0.3),
    _mirror([(0.3, -0.85), (0.3, -0.3), (0.85, -0.3), (0.85, 0.3), (0.3, 0.3), (0.3, 0.85)]),  # a cross
    _mirror([(0, -0.85), (0.7, -0.1), (0.28, -0.1), (0.28, 0.85)]),  # an arrow
    _mirror([(0.85, -0.35), (0.85, 0.35)]),  # a bar
    [(0.35 * x, 0.85 * y) for x, y in _polygon(40)],
    [(-0.8, -0.8), (-0.3, -0.8), (-0.3, 0.3), (0.8, 0.3), (0.8, 0.8), (-0.8, 0.8)],  # an angle
    _mirror([(0.8, -0.8), (0.8, -0.3), (0.25, -0.3), (0.25, 0.8)]),  # a T
    _mirror([(0.8, -0.8), (0.05, 0), (0.8, 0.8)]),  # an hourglass
    [(0.8 * cos(a), 0.8 * sin(a)) for a in (pi * k / 20 for k in range(21))]
    + [(0.8 * cos(a), 0.3 * sin(a)) for a in (pi * k / 20 for k in range(20, -1, -1))],  # a moon
)


def shapes() -> Tensor:
    """Return one picture (LARGE, LARGE) of each shape."""
    drawn = []
    for shape in SHAPES:
        canvas = Image.new("L", (4 * LARGE, 4 * LARGE))
        ImageDraw.Draw(canvas).polygon([(2 * LARGE * (1 + x), 2 * LARGE * (1 + y)) for x, y in shape], fill=255)
        drawn.append(np.asarray(canvas.resize((LARGE, LARGE), Image.Resampling.BOX)))
    return torch.from_numpy(np.stack(drawn)).float() / 255


def _waves(x: Tensor, y: Tensor, dice: Generator) -> Tensor:
    return (5 * x + 2 * (4 * y).sin()).sin()


Texture = Callable[[Tensor, Tensor, Generator], Tensor]  # places, -pi to pi, shifted at random; values from -1 to 1


def _noise(grain: int) -> Texture:
    def made(x: Tensor, y: Tensor, dice: Generator) -> Tensor:
        coarse = 2 * torch.rand(1, 1, SIDE // grain, SIDE // grain, generator=dice) - 1
        return F.interpolate(coarse, (SIDE, SIDE))[0, 0]

    return made


TEXTURES: tuple[Texture, ...] = (
    lambda x, y, dice: (4 * x).sin(),
    lambda x, y, dice: (4 * y).sin(),
    lambda x, y, dice: (7 * x).sin(),
    lambda x, y, dice: (7 * y).sin(),
    lambda x, y, dice: (4 * (x + y)).sin(),
    lambda x, y, dice: (4 * (x - y)).sin(),
    lambda x, y, dice: (4 * x).sin() * (4 * y).sin(),
    lambda x, y, dice: torch.maximum((4 * x).sin(), (4 * y).sin()),
    lambda x, y, dice: (6 * (x**2 + y**2).sqrt()).sin(),
    lambda x, y, dice: (3 * torch.atan2(y, x)).sin(),
    _waves,
    lambda x, y, dice: _waves(y, x, dice),
    _noise(1),
    _noise(4),
)


def textures(labels: Tensor, dice: Generator) -> Tensor:
    """Return a picture (n, SIDE, SIDE) of each label's texture: shifted, scaled, brighter or paler at random."""
    line = torch.linspace(-pi, pi, SIDE)
    drawn = []
    for label in labels.tolist():
        right, down, scale, contrast, light = torch.rand(5, generator=dice).tolist()
        x, y = (((0.95 + 0.1 * scale) * (line + shift)) for shift in (0.6 * right, 0.6 * down))
        value = TEXTURES[label](x.expand(SIDE, SIDE), y.expand(SIDE, SIDE).T, dice)
        drawn.append(0.5 + 0.1 * (light - 0.5) + (0.3 + 0.15 * contrast) * value)
    return torch.stack(drawn).clamp(0, 1)


CLASSES = {"shapes": len(SHAPES), "textures": len(TEXTURES)}
