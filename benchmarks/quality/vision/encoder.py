"""The model: a stem of two convolutions, then a residual MLP; two million parameters, 14 linear weights."""

from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HIDDEN, BLOCKS = 256, 512, 6
CHANNELS = (16, 32)
STEM_SIDE = 7  # of 28 pixels, halved twice
SHARPNESS = 10.0  # factor of the cosine between an embedding and a class's prototype


class Block(nn.Module):
    """x + down(gelu(up(norm(x))))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, WIDTH)."""
        h: Tensor = self.down(F.gelu(self.up(self.norm(x))))
        return x + h


class Encoder(nn.Module):
    """Pictures (n, 28, 28), 0 to 1, to embeddings (n, WIDTH) of norm 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, CHANNELS[0], 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(CHANNELS[0], CHANNELS[1], 3, stride=2, padding=1)
        self.stem = nn.Linear(CHANNELS[1] * STEM_SIDE**2, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, pictures: Tensor) -> Tensor:
        """pictures: (n, 28, 28)."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(pictures[:, None]))))
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = block(x)
        return F.normalize(self.out(self.norm(x)), dim=1)


def loss_of(embedded: Tensor, prototypes: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of classes told by the nearest prototype, each (WIDTH,) of norm 1."""
    return F.cross_entropy(SHARPNESS * embedded @ prototypes.T, labels)


def nearest(embedded: Tensor, prototypes: Tensor) -> Tensor:
    """Return the class of the nearest prototype of each."""
    return (embedded @ prototypes.T).argmax(1)
