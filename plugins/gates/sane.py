"""The built-in gate: what only the content shows. It judges the norms that folding gathered, before anything is published."""

from math import isfinite

from ...state.records import ADMITTED, Drafted, Reason, Verdict


class Sane:
    """Refuses a checkpoint with a number that is not finite."""

    def judge(self, drafted: Drafted) -> Verdict:
        """Refuse where a weight's norm shows a NaN or an infinity."""
        bad = [name for name, report in drafted.weights.items() if not isfinite(report.task_norm)]
        if bad:
            found = f"NaN or infinity in {', '.join(bad[:3])}" + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
            next_step = "train again from before the divergence; no other checkpoint was touched"
            return Verdict("refused", (Reason("not-finite", found, "finite numbers everywhere", next_step),))
        return ADMITTED
