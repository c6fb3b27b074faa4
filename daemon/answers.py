"""How answers look to people: the list, the log, a version, a verdict, and what a rollback took out."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..state.records import WeightReport
from ..state.wording import quoted, size
from .answers_gates import measured, metrics
from .display import err, facts, lines, out, safe
from .retention import Keep
from .settings import Settings

if TYPE_CHECKING:
    from .initialise import Initialised

COUNTS = ("folded", "waiting", "settling", "held", "refused", "blocked")


def initialised(settings: Settings, config: Path, found: "Initialised") -> None:
    """Say what init found in the base model, what a version costs on disk, and what lies in the folder already."""
    weights, fixed, digest = len(found.base.weights), len(found.base.fixed), found.base.digest
    cost, free = size(found.version_bytes), size(shutil.disk_usage(settings.state).free)
    models, slots = Keep.of(settings).usual()
    usual = models * (found.version_bytes - found.slots_bytes) + slots * found.slots_bytes
    out.print(f"base model: {weights} weights to fold, {fixed} to copy as they are, digest {digest[:12]}")
    out.print(f"a version takes {cost} on disk ({size(found.slots_bytes)} of it slots); {free} are free")
    if found.spilled_bytes:
        out.print(f"while one is folded, it takes {size(found.spilled_bytes)} more")
    allowed = f"; the setting disk allows {size(settings.disk)}" if settings.disk else ""
    out.print(f"the newest {settings.keep_last} are kept: {size(usual)} with the one being folded{allowed}")
    out.print("    more where they are young, tagged or gone back to: mergd gc -n shows what is kept and why")
    for row in found.existing:
        out.print(f"there already: {safe(row.name)}, {row.state}")
    out.print(f"configuration: {safe(config)}\nnext: mergd run -c {safe(config)}")


def checkpoints(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each checkpoint, and its reasons beneath."""
    if not rows:
        out.print("no checkpoint was seen yet")
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        state = row["state"] + ("" if row["state"] != "folded" or row["in_model"] else ", rolled away")
        digest = (row["digest"] or "")[:12]
        out.print(f"{safe(row['name'].ljust(width))}  {state:20}  {_when(row['since'])}  {digest}".rstrip())
        if row["waits_for"]:
            out.print(f"    waits for {safe(row['waits_for'])}")
        reasons(row["reasons"])
        decisions(row["decisions"])


def reasons(values: Sequence[Mapping[str, str]]) -> None:
    """Print why, and what to do; the same step for several reasons once."""
    for next_step, same in groupby(values, key=itemgetter("next_step")):
        for reason in same:
            out.print(f"    {safe(reason['code'])}: found {safe(reason['found'])}; expected {safe(reason['expected'])}")
        out.print(f"    next: {safe(next_step)}")


def decisions(values: Sequence[Mapping[str, str]]) -> None:
    """Print what people decided, by whom and when."""
    for made in values:
        what = " ".join(filter(None, (made["verdict"], made["code"])))
        why = f": {safe(made['why'])}" if made["why"] else ""
        out.print(f"    {safe(what)} by {safe(made['who'])}, {_when(made['at'])}{why}")


def log(entries: Sequence[Mapping[str, Any]]) -> None:
    """Print the versions, newest first."""
    lines(graph(entries) if entries else ["there is no version yet"])


def graph(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of the log; each line of history has a column, which joins its parent's."""
    columns: list[int] = []  # the version that each column leads down to
    for entry in entries:
        if entry["version"] not in columns:
            columns.append(entry["version"])
        here = columns.index(entry["version"])
        yield " ".join("●" if k == here else "│" for k in range(len(columns))) + f" {_version(entry)}"
        if entry["parent"] is None or entry["parent"] in columns:
            del columns[here]
            if entry["parent"] in columns:
                joined = columns.index(entry["parent"])
                yield "│ " * joined + "├" + "──" * (here - joined - 1) + "─╯"
        else:
            columns[here] = entry["parent"]


def card(answer: Mapping[str, Any]) -> None:
    """Print a model card as it stands, and what was learned since."""
    since = [f"- {said}" for said in answer["since"]]
    for line in [*answer["card"].splitlines(), *(["", "## Since then", "", *since] if since else [])]:
        out.print(safe(line))


FILES = {
    "kept": "",
    "damaged": "damaged: mergd verify",
    "kept without slots": "slots dropped",
    "replayable": "dropped; mergd replay makes it once more",
    "gone": "dropped, and sources of it are gone",
}


def _version(entry: Mapping[str, Any]) -> str:
    name = cause_of(entry)
    head = " [bold green]<- head[/]" if entry["head"] else ""
    kept = f" [dim]({FILES[entry['files']]})[/]" if FILES[entry["files"]] else ""
    kept += f" [bold yellow]{safe(', '.join(entry['tags']))}[/]" if entry["tags"] else ""
    folded = f"{entry['totals']['folded']} folded, scale {entry['scale']:.4g}"
    counts = f" counts {entry['share']:g}" if entry["share"] not in (None, 1.0) else ""
    kept += "".join(f"  {safe(words)}" for words in measured(entry["measured"]))
    return f"[bold]v{entry['version']}[/] {_when(entry['created_at'])}  {safe(name)}{counts}  ({folded}){kept}{head}"


def cause_of(entry: Mapping[str, Any]) -> str:
    """Return what made a version, in few words."""
    if entry["cause"] == "read-out":
        return f"read out by {entry['rule']}"
    if entry["cause"] == "re-merge":
        return f"merged anew by {entry['rule']}"
    return str(entry["checkpoint"]["name"]) if entry["checkpoint"] else f"without {entry['removed']}"


def _when(at: str) -> str:
    return at[:16].replace("T", " ")


def status(answer: Mapping[str, Any]) -> None:
    """Print how things stand."""
    daemon, paused, disk = answer.get("daemon"), answer.get("paused"), answer.get("disk")
    counts = ", ".join(f"{answer[key]} {key}" for key in COUNTS if answer.get(key))
    facts(
        {
            "head": f"v{answer['head']}" if answer.get("head") else "none yet",
            "published": answer.get("published"),
            "doing": answer.get("doing") or ("waiting for checkpoints" if daemon else "no daemon runs"),
            "prepared": _prepared(answer.get("prepared")),
            "trouble": answer.get("trouble"),
            "sources": _sources(answer.get("sources")),
            "pushed": _pushed(answer.get("pushed"), answer.get("push") or {}),
            "hooks": _hooks(answer.get("hooks") or {}, answer.get("telling") or {}),
            "paused": f"since {paused['since']} by {paused['who']}: {paused['why'] or 'no reason given'}"
            if paused
            else "",
            "checkpoints": counts or "none yet",
            "blocked": "; ".join(answer.get("blocked_by") or []),
            "gates": ", ".join(answer.get("gates") or []) or "none is set: every checkpoint that is admitted goes live",
            "measured": "; ".join(measured(answer.get("measured") or {})),
            "rule": f"{answer.get('rule')} {answer.get('parameters') or ''}".strip(),
            "scale": f"{answer['scale']:.6g}" if answer.get("scale") is not None else "",
            "totals": ", ".join(f"{key} {value:.6g}" for key, value in (answer.get("totals") or {}).items()),
            "disk": f"{size(disk['used'])} used{_of(answer.get('budget'))}, {size(disk['free'])} free" if disk else "",
        }
    )


def _pushed(last: Mapping[str, Any] | None, told: Mapping[str, str]) -> str:
    """Return how pushing to the Hub stands."""
    done = f"v{last['version']} ({last['repository']}@{last['commit'][:12]})" if last else ""
    error = f"last error: {told['trouble']}" if told.get("trouble") else ""
    return ", ".join(filter(None, (done, told.get("doing"), error)))


def _sources(trouble: str | None) -> str:
    """Return what keeps checkpoints that lie elsewhere from being asked for."""
    return f"{trouble}; what is here is folded all the same" if trouble else ""


def _hooks(hooks: Mapping[str, Any], telling: Mapping[str, Mapping[str, str]]) -> str:
    """Return how far each hook is."""
    lines = []
    for name, hook in hooks.items():
        trouble = telling.get(name, {}).get("trouble")
        said = [f"{hook['owed']} to be told" if hook["owed"] else "told of all"]
        said += [f"{hook['undelivered']} undelivered"] if hook["undelivered"] else []
        lines.append(f"{name}: {', '.join([*said, f'last error: {trouble}'] if trouble else said)}")
    return "; ".join(lines)


def _prepared(told: Mapping[str, int] | None) -> str:
    """Return how much of the next fold is computed already."""
    return f"{told['weights']} of {told['of']} weights, {size(told['bytes'])}" if told else ""


def _of(budget: int | None) -> str:
    return f" of {size(budget)}" if budget else ""


def verdict(answer: Mapping[str, Any], deep: bool) -> None:
    """Print the verdict that a checkpoint would get, and what the daemon cannot read of it."""
    said = {
        "admitted": "it would be folded" if deep else "it would be admitted",
        "known": "there would be nothing to fold",
        "incomplete": f"not complete: {safe(answer['waits_for'])}",
    }
    counts = f", and count {answer['share']:g}" if answer["decision"] == "admitted" and answer["share"] != 1.0 else ""
    out.print(said.get(answer["decision"], answer["decision"]) + counts)
    reasons(answer["reasons"])
    daemon = answer["daemon"] or {"cannot_read": []}
    for file in daemon["cannot_read"]:
        out.print(f"the daemon (user {safe(daemon['user'])}) cannot read {safe(file)}")


def approved(answer: Mapping[str, Any]) -> None:
    """Say what was approved, and when it is folded."""
    for item in answer["approved"]:
        out.print(f"{safe(item['name'])} is approved: {safe(', '.join(item['lifted']))} is no reason any more")
    out.print(_goes_on(answer, "folded"))


def refused(answer: Mapping[str, Any]) -> None:
    """Say what was refused."""
    out.print(f"{safe(answer['name'])} is refused (it was {answer['was']})")


def retried(answer: Mapping[str, Any]) -> None:
    """Say what will be looked at again."""
    out.print(f"the refusal of {safe(answer['name'])} is taken back\n{_goes_on(answer, 'looked at again')}")


def _goes_on(answer: Mapping[str, Any], what: str) -> str:
    if answer["paused"]:
        return "nothing is folded while it is paused; to go on: mergd resume"
    return (
        f"{what} on the head of that moment"
        if answer["daemon"]
        else f"{what} when the daemon runs, or: mergd run --once"
    )


def folded(answer: Mapping[str, Any]) -> None:
    """Print how an asked fold ended."""
    for item in answer["checkpoints"]:
        out.print(f"{safe(item['name'])}: {item['state']}")
        for reason in item["reasons"]:
            out.print(f"    {safe(reason)}")
    if any(item["state"] == "held" for item in answer["checkpoints"]):
        out.print("what is held waits for a person: mergd list says how to decide")
    out.print(f"the head is v{answer['head']}" if answer["head"] else "there is no version yet")


def shown(answer: Mapping[str, Any]) -> None:
    """Print a version with its per-weight statistics and what gates measured, or a checkpoint."""
    apart = ("weights", "reasons", "decisions", "measured", "transfer")
    facts({key: value for key, value in answer.items() if key not in apart})
    reasons(answer.get("reasons", []))
    decisions(answer.get("decisions", []))
    for gate, told in answer.get("transfer", {}).items():
        lines(metrics(gate, told))
    if answer.get("weights"):
        lines(_weights({name: WeightReport(**report) for name, report in answer["weights"].items()}))


def _weights(reports: Mapping[str, WeightReport]) -> Iterator[str]:
    yield "[bold]norm     of base   split rank  survived  weight[/]"
    for name, report in reports.items():
        relative = f"{report.task_norm / report.base_norm:.3g}" if report.base_norm else "-"
        numbers = f"{report.task_norm:<8.4g} {relative:<9} {report.split_rank:<11g} {report.survived:<9.1%}"
        yield f"{numbers} {safe(name)}"


def rolled_back(answer: Mapping[str, Any]) -> None:
    """Say what a rollback took out of the model, and the commands that change that."""
    head, before = answer["head"], answer["before"]
    paused = ", and folding is paused; to go on: mergd resume" if answer["paused"] else ""
    moved = f"the head is v{head} now (it was v{before})" if head != before else f"the head is v{head} already"
    out.print(moved + paused)
    if not answer["slots_kept"]:
        out.print("its slots were dropped: they are made once more before the next fold")
    if answer["back"]:
        out.print(f"in the model again, though it was taken out since: {safe(', '.join(answer['back']))}")
    if not answer["out"]:
        return
    names = [safe(item["name"]) for item in answer["out"]]
    out.print(f"no longer in the model: {', '.join(names)}")
    words = [safe(quoted(item["place" if item["name"].startswith("-") else "name"])) for item in answer["out"]]
    out.print(f"    to put one back:   mergd fold --again {words[-1]}")
    if len(names) > 1:
        out.print(f"    to take out {names[0]} only: mergd fold --again {' '.join(words[1:])}")
    out.print(f"    to put all back:   mergd rollback v{before}")


def remade(answer: Mapping[str, Any]) -> None:
    """Say what a removal or a replay would take, or what came of it."""
    if answer["planned"]:
        out.print(f"{answer['words']}; {size(answer['disk'])} of the disk meanwhile")
    else:
        if answer["left_out"]:
            out.print(f"left out, because their sources are gone: {safe(', '.join(answer['left_out']))}")
        out.print(f"v{answer['version']} is there; the head is v{answer['head']}")
        if answer["goes_on_by"]:
            out.print(f"the next checkpoint is folded and read by {safe(answer['goes_on_by'])}, as before")


def exported(answer: Mapping[str, Any]) -> None:
    """Say what was exported, and for an adapter how much of the task vector it keeps."""
    where = f"v{answer['version']} is in {safe(answer['folder'])}"
    if "rank" not in answer:
        out.print(f"{where}: {answer['files']} files, {size(answer['bytes'])}")
        if not answer["compared"]:
            out.print("its files were not compared with the manifest, which the state's owner alone may read")
        return
    out.print(f"{where}, as an adapter of rank {answer['rank']} on {answer['matrices']} matrices")
    kept, of_matrices = answer["kept"], answer["kept_of_matrices"]
    out.print(f"it keeps {kept:.2%} of the task vector's squared norm, {of_matrices:.2%} of these matrices'")
    for kind, left in answer["left_out"].items():
        out.print(f"    left out: {left['share']:.2%}, {left['weights']} {safe(kind)}")


def verified(answer: Mapping[str, Any]) -> None:
    """Print what was found, and where the head could go."""
    for fault in answer["faults"]:
        where = err if fault["damage"] else out
        where.print(f"{'damaged' if fault['damage'] else 'note'}: {safe(fault['what'])} {safe(fault['found'])}")
    read = ", ".join(f"v{number}" for number in answer["read"]) or "no version has files"
    out.print(f"read whole: {read}")
    if answer["sound"]:
        out.print("all files are as they were written")
        if replayed := answer.get("replayed"):
            steps = f"{replayed['steps']} {'step' if replayed['steps'] == 1 else 'steps'}"
            out.print(f"v{replayed['version']} was made once more, in {steps}: the same bytes came of it")
    elif answer["nearest"]:
        err.print(f"the nearest version that is not known to be damaged: mergd rollback v{answer['nearest']}")
    else:
        err.print("no other version is kept: bring its files back from a backup, then mergd verify")


def rebuilt(answer: Mapping[str, Any]) -> None:
    """Say what was made again, and what was not."""
    out.print(f"{answer['versions']} versions are known again; the head is v{answer['head']}")
    if answer["aside"]:
        out.print(f"the old database: {safe(answer['aside'])}")
    for text in answer["damaged"]:
        err.print(f"damaged: {safe(text)}")
    if answer["held"]:
        out.print(f"not folded as far as is known: {safe(', '.join(answer['held']))}; see: mergd list")
    out.print("lost with the old database:")
    lines(f"    {safe(text)}" for text in answer["lost"])
    out.print("next: mergd verify reads all files")
