"""A PEFT adapter: `adapter_config.json` with `adapter_model.safetensors`, as `save_pretrained` of the peft library writes."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from ...state.errors import Busy, Refused
from ...state.headers import MAX_TENSORS, layout_of
from ...state.records import Layout, Reason, TensorInfo
from ...state.wording import shown
from ._files import read_json, refuse_never_read
from ._formulas import Both, Dora, Loha, Lokr, Lora, Scaled
from .interface import Contents, Part, Whole

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FULL_MODEL = ("model.safetensors", "model.safetensors.index.json")
PREFIX = "base_model.model."
# base_model.model.<module>[.base_layer].<what>; the adapter's own name is not in it
OWN = re.compile(r"(?P<module>.*?)\.(?P<what>(lora|hada|lokr)_\w+(\.weight|\.bias)?)")
KINDS = {"LORA": "lora", "LOHA": "hada", "LOKR": "lokr"}
# Ways to start that write into the base model: the factors alone do not tell what the base became.
CHANGES_THE_BASE = re.compile(r"pissa|olora|corda|loftq|lora_ga", re.IGNORECASE)
# Options that are read here, or that change nothing once an adapter is trained. Any other that is set is refused.
HARMLESS = {
    "alpha", "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "decompose_both", "decompose_factor",
    "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "init_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout", "megatron_core",
    "module_dropout", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_dropout",
    "rank_dropout_scale", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type",
    "use_effective_conv2d", "use_dora", "use_rslora",
}  # fmt: skip
PLAIN = re.compile(r"[\w.-]+")
MAX_REGULAR = 16
MAX_PARTS = 32  # of a module's name, from its end, that a pattern may begin at
MAX_NUMBER = 1e6  # of a rank or an alpha
CONVERTS = "merge it into the base model with peft's merge_and_unload, and save that"


class Adapter:
    """LoRA (with rsLoRA and DoRA), LoHa and LoKr; whole modules and biases that were trained beside them."""

    def recognises(self, place: Path) -> bool:
        """Whether it is a folder with an adapter's files and none of a full model."""
        if not place.is_dir() or any((place / name).exists() for name in FULL_MODEL):
            return False
        return (place / CONFIG).exists() or any(place.glob("adapter_model.*"))

    def contents(self, place: Path, most: int = MAX_TENSORS) -> Contents:
        """Return the formulas of the weights that it changes; all others are the base model's."""
        if not (place / WEIGHTS).exists():
            refuse_never_read(place, "adapter_model")
            raise Busy(f"waits for {WEIGHTS}")
        if not (place / CONFIG).exists():
            raise Busy(f"waits for {CONFIG}")  # peft writes it last
        config = read_json(place / CONFIG)
        _check_kind(config)
        layout = layout_of([place / WEIGHTS], most)
        return Contents(layout, Parts(layout, config).all(), partial=True, config=config)


def _check_kind(config: Mapping[str, Any]) -> None:
    """Refuse by name what is none of the formulas here."""
    kind = str(config.get("peft_type"))
    start = str(config.get("init_lora_weights", config.get("init_weights", "")))
    if kind.upper() not in KINDS:
        raise _not_computed(f"a {shown(kind)} adapter")
    if CHANGES_THE_BASE.search(start):
        raise _not_computed(f"an adapter that was started with {shown(start)}, which changes the base model too")
    unknown = sorted(option for option, value in config.items() if value and option not in HARMLESS)
    if unknown:
        raise _not_computed(f"an adapter with {shown(unknown[0])}")


def _not_computed(found: str) -> Refused:
    return Refused(Reason("adapter-kind", found, "LoRA, rsLoRA, DoRA, LoHa or LoKr", CONVERTS))


class Parts:
    """Turns the tensors of one adapter into parts."""

    def __init__(self, layout: Layout, config: Mapping[str, Any]) -> None:
        self._layout, self._config = layout, config
        self._own: dict[str, dict[str, TensorInfo]] = {}  # module -> what -> tensor
        self._whole: dict[str, Whole] = {}
        self._patterns: dict[str, Patterns] = {}
        for name, info in layout.tensors.items():
            self._sort(name.removeprefix(PREFIX), info)

    def _sort(self, name: str, info: TensorInfo) -> None:
        match = OWN.fullmatch(name)
        if match:
            self._own.setdefault(match["module"], {})[match["what"].removesuffix(".weight")] = info
        elif re.search(r"\.(lora|hada|lokr|ia3|oft|boft|vera|trainable_tokens)_", f".{name}"):
            raise _not_computed(f"the tensor '{shown(info.name)}'")
        else:  # modules_to_save, biases, and embeddings that peft stores whole
            self._whole[name.replace(".base_layer.", ".")] = Whole(info.name, info.shape)

    def all(self) -> dict[str, Part]:
        """Return every part, by the weight's name."""
        parts: dict[str, Part] = dict(self._whole)
        for module, found in self._own.items():
            for name, part in self._of_module(module, found).items():
                whole = self._whole.get(name)
                parts[name] = Both(whole, part) if whole else part
        return parts

    def _of_module(self, module: str, found: dict[str, TensorInfo]) -> dict[str, Part]:
        kind = KINDS[str(self._config["peft_type"]).upper()]
        if any(not what.startswith(kind) for what in found):
            raise _not_computed(f"{shown(', '.join(found))} of {shown(module)}")
        try:
            return {"lora": self._lora, "hada": self._loha, "lokr": self._lokr}[kind](module, found)
        except KeyError as error:
            raise _bad(f"no {error.args[0]} of {shown(module)}", "all factors of each module") from None

    def _lora(self, module: str, found: dict[str, TensorInfo]) -> dict[str, Part]:
        bias = found.pop("lora_B.bias", None)
        magnitude = found.pop("lora_magnitude_vector", None)
        embedding = "lora_embedding_A" in found
        B, A = (found.pop(f"lora_embedding_{x}" if embedding else f"lora_{x}") for x in "BA")
        if found:
            raise _not_computed(f"{shown(', '.join(found))} of {shown(module)}")
        rank = self._rank(module, A, B)
        scale = self._scale(module, rank)
        product = (B.shape[0], *A.shape[1:])
        # peft stores an embedding's weight as (rows, width), the product's transpose
        turned = embedding or bool(self._config.get("fan_in_fan_out"))
        part: Part = Lora(B.name, A.name, scale, rank, product, fan_in_fan_out=turned, embedding=embedding)
        if self._config.get("use_dora") and magnitude is None:
            raise _bad(f"no magnitude of {shown(module)}", "one of each module, as use_dora says")
        if magnitude is not None:
            if embedding or len(product) != 2:
                raise _not_computed(f"DoRA of {shown(module)}, which is no linear map")
            part = Dora(cast(Lora, part), magnitude.name)
        parts = {f"{module}.weight": part}
        if bias is not None:
            parts[f"{module}.bias"] = Scaled(bias.name, scale, bias.shape)
        return parts

    def _rank(self, module: str, A: TensorInfo, B: TensorInfo) -> int:
        """Return the rank of a module's factors, which the configuration has to confirm: the scale hangs on it."""
        if len(A.shape) < 2 or len(B.shape) < 2 or A.shape[0] != B.shape[1] or math.prod(B.shape[2:]) != 1:
            raise _bad(f"factors {list(B.shape)} and {list(A.shape)} of {shown(module)}", "B (out, r) and A (r, in)")
        self._said_rank(module, A.shape[0])
        return A.shape[0]

    def _said_rank(self, module: str, found: int | None) -> float:
        """Return the rank that the configuration gives a module: the scale hangs on it."""
        said = self._setting(module, "rank_pattern", "r")
        if found is not None and found != said:
            raise _bad(f"rank {found} of {shown(module)}", f"rank {said:g}, as {CONFIG} says")
        return said

    def _loha(self, module: str, found: dict[str, TensorInfo]) -> dict[str, Part]:
        factors = [found.pop(f"hada_{name}") for name in ("w1_a", "w1_b", "w2_a", "w2_b")]
        if found:
            raise _not_computed(f"{shown(', '.join(found))} of {shown(module)}")
        a, b = factors[0].shape, factors[1].shape
        if any(len(f.shape) != 2 for f in factors) or [f.shape for f in factors[2:]] != [a, b] or a[1:] != b[:1]:
            raise _bad(f"factors {[list(f.shape) for f in factors]} of {shown(module)}", "two products of one shape")
        names = [factor.name for factor in factors]
        scale = self._scale(module, self._said_rank(module, a[1]))
        return {f"{module}.weight": Loha(names[0], names[1], names[2], names[3], scale, a[1], (a[0], b[1]))}

    def _lokr(self, module: str, found: dict[str, TensorInfo]) -> dict[str, Part]:
        w1, w2 = self._kron_factor(module, found, "w1"), self._kron_factor(module, found, "w2")
        if found:
            raise _not_computed(f"{shown(', '.join(found))} of {shown(module)}")
        one, two = _product_shape(w1), _product_shape(w2)
        product = (one[0] * two[0], one[1] * two[1], *two[2:])
        ranks: list[int | None] = [factors[0].shape[1] for factors in (w1, w2) if len(factors) == 2]
        rank, *_ = [self._said_rank(module, decomposed) for decomposed in ranks or [None]]
        names = tuple(f.name for f in w1), tuple(f.name for f in w2)
        return {f"{module}.weight": Lokr(*names, self._scale(module, rank), int(rank), product)}

    def _kron_factor(self, module: str, found: dict[str, TensorInfo], name: str) -> list[TensorInfo]:
        whole = found.pop(f"lokr_{name}", None)
        factors = [whole] if whole else [found.pop(f"lokr_{name}_a"), found.pop(f"lokr_{name}_b")]
        if any(len(f.shape) < 2 for f in factors) or (len(factors) == 2 and factors[0].shape[1] != factors[1].shape[0]):
            raise _bad(
                f"factors {[list(f.shape) for f in factors]} of {shown(module)}", "matrices whose product there is"
            )
        return factors

    # ----------------------------------------------------------------------------------------- numbers of the config

    def _scale(self, module: str, rank: float) -> float:
        alpha = self._setting(module, "alpha_pattern", "lora_alpha" if "lora_alpha" in self._config else "alpha")
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)

    def _setting(self, module: str, patterns: str, default: str) -> float:
        """Return a number for one module: of the first pattern that fits its name, or the default."""
        found = self._config.get(patterns) or {}
        if not isinstance(found, dict):
            raise _bad(f"{patterns} = {shown(found)}", "an object")
        chosen = self._patterns.setdefault(patterns, Patterns(found)).first(module)
        value = self._config.get(default) if chosen is None else found[chosen]
        if not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER or (default == "r" and value < 1):
            raise _bad(f"{default} = {shown(value)}", "a number")
        return value


class Patterns:
    """The keys of `rank_pattern` or `alpha_pattern`: each fits a module whose name ends in it, after a dot.

    They come from strangers: plain names, which they nearly always are, are looked up; of regular expressions only few
    are taken, without anything that lets a match take long.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._order = {key: place for place, key in enumerate(keys)}
        regular = [key for key in self._order if not PLAIN.fullmatch(key)]
        if len(regular) > MAX_REGULAR or not all(map(_is_quick, regular)):
            found = f"the pattern '{shown(regular[0])}' ({len(regular)} such)"
            raise _bad(
                found, f"names of modules, or up to {MAX_REGULAR} regular expressions with one repetition at most"
            )
        self._regular = {key: re.compile(key) for key in regular}

    def first(self, module: str) -> str | None:
        """Return the first key that fits."""
        parts = module.split(".")
        ends = [".".join(parts[k:]) for k in range(max(0, len(parts) - MAX_PARTS), len(parts))] + [module]
        fits = [end for end in ends if end in self._order]
        fits += [key for key, pattern in self._regular.items() if any(map(pattern.fullmatch, ends))]
        return min(fits, key=self._order.__getitem__, default=None)


def _is_quick(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return len(pattern) <= 256 and len(re.findall(r"[*+?{]", pattern)) <= 1 and not re.search(r"\)[*+?{]", pattern)


def _product_shape(factors: list[TensorInfo]) -> tuple[int, ...]:
    return factors[0].shape if len(factors) == 1 else (factors[0].shape[0], *factors[1].shape[1:])


def _bad(found: str, expected: str) -> Refused:
    return Refused(Reason("bad-adapter", found, expected, "save the adapter again with peft's save_pretrained"))
