"""The sketch: linear, the same in any blocks and precision, and never wronger than its docstring says."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from mergd.daemon.sketch import P, Projection, Q, Sketch, cosines, inner_product
from mergd.plugins.rules.interface import LowRank

Vectors = Mapping[str, Tensor]  # a task vector by weight


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sketch_of(vectors: Vectors, signs: int = 0) -> bytes:
    """Return the sketch of a task vector; another number chooses other signs, as other names would."""
    sketch = Sketch()
    for name, tensor in vectors.items():
        sketch.add(Projection(f"{signs}.{name}", tuple(tensor.shape)), tensor)
    return sketch.tobytes()


def dot(x: Vectors, y: Vectors) -> float:
    return sum(float((x[name] * y[name]).sum()) for name in x)


SHAPES = [(), (7,), (6, 5), (1, 9), (9, 1), (4, 3, 5), (5, 2, 3, 3), (0, 4), (4, 0)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_linear(shape: tuple[int, ...]) -> None:
    x, y = random(*shape, seed=1), random(*shape, seed=2)
    w = Projection("layer.weight", shape)
    torch.testing.assert_close(w.of(2 * x - 3 * y), 2 * w.of(x) - 3 * w.of(y))
    assert w.of(x).shape == (P, Q)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape and shape[0] > 1], ids=str)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_blocks_of_rows_add_up_to_the_whole(shape: tuple[int, ...], step: int) -> None:
    x, w = random(*shape), Projection("layer.weight", shape)
    cuts = [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
    parts = [w.of(x[first:last], (first, last)) for first, last in cuts]
    torch.testing.assert_close(torch.stack(parts).sum(0), w.of(x))


def test_a_product_need_not_be_made() -> None:
    B, A, w = random(30, 3, seed=1), random(3, 20, seed=2), Projection("layer.weight", (30, 20))
    torch.testing.assert_close(w.of(LowRank(B, A, (B.shape[0], A.shape[1]))), w.of(B @ A))


def test_float32_tells_the_same_as_float64() -> None:
    x = {"a.weight": random(300, 200), "a.bias": random(300)}
    narrow = sketch_of({name: tensor.float() for name, tensor in x.items()})
    assert cosines(sketch_of(x), [narrow])[0] == pytest.approx(1, abs=1e-9)


def test_signs_follow_from_the_name_alone_and_never_change() -> None:
    """Sketches are kept for years: this one was written down when the first of them was made."""
    x = {"layer.weight": torch.arange(12.0).reshape(3, 4)}
    assert sketch_of(x) == sketch_of(x) != sketch_of(x, 1)
    filled = torch.frombuffer(bytearray(sketch_of(x)), dtype=torch.float32).reshape(P, Q)
    places = filled.abs().sum(0).nonzero().flatten().tolist()
    assert (places, filled[:3, places].tolist()) == EXPECTED


EXPECTED = ([9, 35, 56, 58], [[-2.0, 3.0, -4.0, -1.0], [-18.0, 15.0, -12.0, -21.0], [6.0, -5.0, 4.0, 7.0]])


def test_a_sketch_takes_a_few_kilobytes_whatever_it_is_of() -> None:
    assert len(sketch_of({"a": random(500, 400)})) == len(sketch_of({"b": random(2)})) == 4 * P * Q == 2048


# --------------------------------------------------------------------------------------------------------- its error


def bound(x: Vectors, y: Vectors) -> float:
    """Return the variance of the estimate of <x, y> that the docstring allows."""
    within = sum(dot({name: x[name]}, x) * dot({name: y[name]}, y) for name in x)
    return (2 / P + 2 / Q + 4 / (P * Q)) * within + (dot(x, x) * dot(y, y) + dot(x, y) ** 2) / (P * Q)


u, v, w = (random(24, seed=seed) for seed in (1, 2, 3))
PAIRS: dict[str, tuple[Vectors, Vectors]] = {
    "one matrix of rank one, twice": ({"a": torch.outer(u, v)}, {"a": torch.outer(u, v)}),
    "matrices that share their rows' space": ({"a": torch.outer(u, v)}, {"a": torch.outer(w, v)}),
    "matrices that share their columns' space": ({"a": torch.outer(u, v)}, {"a": torch.outer(u, w)}),
    "full matrices": ({"a": random(20, 20, seed=1)}, {"a": random(20, 20, seed=2)}),
    "a bias": ({"a": u}, {"a": u + v}),
    "many weights": (
        {str(k): random(8, 8, seed=k) for k in range(12)},
        {str(k): random(8, 8, seed=k) + random(8, 8, seed=99 - k) for k in range(12)},
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_an_inner_product_is_right_in_the_mean_and_its_variance_is_within_the_bound(case: str) -> None:
    x, y = PAIRS[case]
    times = 100
    found = torch.tensor([inner_product(sketch_of(x, k), sketch_of(y, k)) for k in range(times)], dtype=torch.float64)
    error = found - dot(x, y)
    assert abs(float(error.mean())) < 4 * math.sqrt(bound(x, y) / times)
    assert float((error**2).mean()) < 1.3 * bound(x, y)


def test_what_is_the_same_but_for_its_length_has_the_cosine_one() -> None:
    x = {"a": torch.outer(u, v), "b": w}
    for factor, cosine in ((1.0, 1.0), (0.3, 1.0), (-2.0, -1.0)):
        found = cosines(sketch_of(x), [sketch_of({name: factor * tensor for name, tensor in x.items()})])
        assert found == pytest.approx([cosine], abs=1e-6)


def test_zero_is_like_nothing() -> None:
    nothing, something = sketch_of({"a": torch.zeros(3, 3)}), sketch_of({"a": torch.ones(3, 3)})
    assert cosines(nothing, [something, nothing]) == (0.0, 0.0)
    assert cosines(something, []) == ()
