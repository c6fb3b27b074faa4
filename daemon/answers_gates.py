"""How what gates measured looks to people."""

from collections.abc import Iterator, Mapping
from typing import Any

from .display import safe

SHOWN = 4  # metrics of a gate, in a line


def measured(gates: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield what each gate measured, in few words."""
    for gate, values in gates.items():
        some = [f"{name} {value:.6g}" for name, value in list(values.items())[:SHOWN]]
        yield f"{gate}: {', '.join(some)}{', ...' if len(values) > SHOWN else ''}"


def metrics(gate: str, told: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a gate measured: of the base model, of the version that brought it, and of this one."""
    backward = told["backward_transfer"]
    yield f"gate {safe(gate)}" + (f", backward transfer {backward:+.6g}" if backward is not None else "")
    yield "[bold]base      brought         now       metric[/]"
    for row in told["metrics"]:
        base = f"{row['base']['value']:.6g}" if row["base"] else "-"
        then = f"{row['then']['value']:.6g} (v{row['since']})" if row["then"] else "-"
        yield f"{base:<9} {then:<15} {row['now']['value']:<9.6g} {safe(row['name'])}"
