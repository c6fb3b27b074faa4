"""What is compared: a method of another package, as it is called there, and the same method here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MODELS = ("llama", "clip")
LOOKUPS = "LOOKUPS"  # stands for the names of the model's lookup tables, which mergd never takes for matrices


@dataclass(frozen=True)
class Case:
    """One comparison."""

    package: str
    method: str  # the package's name for it
    options: Mapping[str, Any]  # the package's parameters
    rule: str  # mergd's rule, and the file in tests/references/
    parameters: Mapping[str, Any] = field(default_factory=dict)  # the rule's
    batch: Mapping[str, Any] = field(default_factory=dict)  # parameters that the reference alone has
    why: tuple[str, ...] = ()  # why the package differs, where it does
    rule_why: tuple[str, ...] = ()  # why mergd differs from the package where the reference does not
    models: tuple[str, ...] = MODELS
    checkpoints: int = 0  # only the first so many; 0: all
    divided: bool = False  # masks are divided by the probability to be kept, in the package's place

    @property
    def told(self) -> str:
        """The package's method and parameters, for people."""
        shown = {key: value for key, value in self.options.items() if value != []}
        words = [f"{key}={'lookups' if value == LOOKUPS else value}" for key, value in shown.items()]
        words += [f"{self.checkpoints} checkpoints"] if self.checkpoints else []
        words += ["masks divided by their probabilities"] if self.divided else []
        return f"`{self.method.split(':')[-1]}`" + (f" {', '.join(words)}" if words else "")


def mergekit(method: str, rule: str, options: Mapping[str, Any], **more: Any) -> Case:
    """Return a case of mergekit."""
    return Case("mergekit", method, options, rule, **more)


def fusion_bench(method: str, rule: str, options: Mapping[str, Any], **more: Any) -> Case:
    """Return a case of fusion-bench; its method is named as MODULE:NAME under fusion_bench.method."""
    return Case("fusion-bench", method, options, rule, **more)


L1 = (
    "mergekit rescales what a mask leaves to the sum of magnitudes that the weight had before (`rescale`), where the paper"
    " divides by the probability to be kept: equal on average, different for each mask."
)
FOUR = "Of a kernel of four dimensions mergekit ranks along the second, mergd along the last."
SMALL = (
    "mergekit takes equal weights where the mean squares of a weight's task vectors add up to less than 1e-6: fine-tunes"
    " that move a weight by less than 5e-4 or so are averaged. The paper weighs by the mean squares whatever their size."
)
TABLES = "fusion-bench flattens every two-dimensional weight, lookup tables too, unless they are excluded by name."
TOLERANCE = (
    "mergd leaves out singular values under a tolerance, whose directions are arbitrary; of a square matrix the least"
    " singular value may lie under it."
)
FISHER = (
    "By default fusion-bench divides each checkpoint's Fisher information by its norm over the whole model, and adds 1e-6:"
    " without both it is equal."
)
ANGLES = "fusion-bench averages the angles of the pairs, mergekit and mergd their cosines."
COSINES = (
    "fusion-bench computes the cosines in float32 and adds 1e-8 to the product of the norms, which a small weight's task"
    " vectors feel."
)
PARTS = (
    "fusion-bench walks the leaf modules: a parameter of a module that has children, such as a CLIP tower's class"
    " embedding, is never merged, and the norm of all follows."
)
WEIGHTS = (
    "The authors take the largest entries over the whole checkpoint, mergd weight by weight; they leave what is no matrix of"
    " the encoder as the base model has it, mergd averages it."
)
KEPT = {"exclude_keys": LOOKUPS}
DARE = {"density": 0.1, "lambda_": 0.3}
DELLA = {"density": 0.5, "epsilon": 0.15, "lambda_": 1.0}

CASES = (
    mergekit("linear", "average", {"weight": 1.0}),
    mergekit("task_arithmetic", "task_arithmetic", {"weight": 1.0, "lambda": 0.3}, parameters={"lambda_": 0.3}),
    mergekit("ties", "ties", {"weight": 1.0, "density": 0.2}, parameters={"density": 0.2, "trim": "tensor"}),
    mergekit("dare_linear", "dare", {"weight": 1.0, "density": 0.1, "lambda": 0.3}, parameters=DARE, why=(L1,)),
    mergekit("dare_linear", "dare", {"weight": 1.0, "density": 0.1, "lambda": 0.3, "rescale": False},
             parameters=DARE, divided=True),
    mergekit("breadcrumbs", "breadcrumbs", {"weight": 1.0, "density": 0.9, "gamma": 0.01, "lambda": 0.3},
             parameters={"density": 0.9, "gamma": 0.01, "lambda_": 0.3}),
    mergekit("della", "della", {"weight": 1.0, "density": 0.5, "epsilon": 0.15}, parameters=DELLA, why=(L1, FOUR)),
    mergekit("della", "della", {"weight": 1.0, "density": 0.5, "epsilon": 0.15, "rescale": False},
             parameters=DELLA, divided=True, why=(FOUR,)),
    mergekit("model_stock", "model_stock", {}),
    mergekit("sce", "sce", {"select_topk": 1.0}, why=(SMALL,)),
    mergekit("karcher", "karcher", {}),
    fusion_bench("simple_average:SimpleAverageAlgorithm", "average", {}),
    fusion_bench("task_arithmetic:TaskArithmeticAlgorithm", "task_arithmetic", {"scaling_factor": 0.3},
                 parameters={"lambda_": 0.3}),
    fusion_bench("ties_merging:TiesMergingAlgorithm", "ties",
                 {"scaling_factor": 1.0, "threshold": 20, "remove_keys": [], "merge_func": "mean"},
                 parameters={"density": 0.2, "trim": "model"}),
    fusion_bench("dare.task_arithmetic:DareTaskArithmetic", "dare",
                 {"scaling_factor": 0.3, "sparsity_ratio": 0.9, "only_on_linear_weights": False}, parameters=DARE),
    fusion_bench("magmax:MagMaxAlgorithm", "magmax", {"scaling_factor": 0.5}, parameters={"lambda_": 0.5}),
    fusion_bench("fisher_merging:merging_with_fisher_weights", "fisher",
                 {"normalize_fisher_weight": False, "minimal_fisher_weight": 0.0}),
    fusion_bench("fisher_merging:merging_with_fisher_weights", "fisher", {}, why=(FISHER,)),
    fusion_bench("model_stock:ModelStock", "model_stock", {}, why=(ANGLES, COSINES)),
    fusion_bench("model_stock:ModelStock", "model_stock", {}, checkpoints=2, why=(COSINES,)),
    fusion_bench("opcm.opcm_general:OPCM", "opcm", {"alpha": 0.5, "shuffle_order": False, "save_on_every_step": False},
                 parameters={"alpha": 0.5, "variant": "block_diagonal"}, why=(PARTS,)),
    fusion_bench("isotropic_merging:ISO_C_Merge", "iso_c", {"scaling_factor": 1.0, **KEPT}, why=(TOLERANCE,)),
    fusion_bench("isotropic_merging:ISO_C_Merge", "iso_c", {"scaling_factor": 1.0}, why=(TABLES,)),
    fusion_bench("isotropic_merging:ISO_CTS_Merge", "iso_cts",
                 {"scaling_factor": 1.0, "common_space_fraction": 0.8, **KEPT}),
    fusion_bench("task_singular_vector:TaskSingularVectorMerging", "tsvm", {"alpha": 1.0, **KEPT}),
    fusion_bench("wudi:WUDIMerging", "wudi", {"iter_num": 300, **KEPT}, parameters={"solver": "adam", "steps": 300}),
    fusion_bench("doge_ta.doge_ta:DOGE_TA_Algorithm", "doge", {"subspace": 6, "K": 30, "lamda": 0.07},
                 batch={"over": "model", "others": "base"}, models=("clip",),
                 rule_why=(WEIGHTS,)),
    fusion_bench("tall_mask:construct_consensus_mask", "consensus_ta",
                 {"tall_mask_lambda": 0.6, "threshold": 2, "scaling_factor": 0.3},
                 parameters={"tall_mask_lambda": 0.6, "prun_thre_k": 2, "lambda_": 0.3}),
)  # fmt: skip

# Rules that neither package has: each is held against its reference alone.
WITHOUT_PEER = ("ace", "ema", "gram", "lawa", "null_filter", "pcb", "stitch")
