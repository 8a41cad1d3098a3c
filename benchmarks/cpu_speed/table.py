"""The result as Markdown, and its place in a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.cpu_speed.models import MODELS
from benchmarks.cpu_speed.operators import GROUPS
from benchmarks.cpu_speed.peers.registry import COMMON
from benchmarks.cpu_speed.verdicts import BUSY, verdicts

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


class NoPlace(Exception):
    """A page has no place for the results."""


def with_results(page: str, result: Mapping[str, Any]) -> str:
    """A page with everything between its markers replaced by the result.

    Raises:
        NoPlace: it has not exactly one pair of markers.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise NoPlace(f"the page needs the lines {BEGIN} and {END}, in this order and once each")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{markdown(result)}\n{END}{after}"


def markdown(result: Mapping[str, Any]) -> str:
    """All runs, by model and threads."""
    order = list(MODELS)
    runs = sorted(result["runs"].values(), key=lambda run: (order.index(run["model"]), run["threads"]))
    return "\n\n".join(_run(run) for run in runs) if runs else "Nothing has been measured yet."


def _run(run: Mapping[str, Any]) -> str:
    threads = "1 thread" if run["threads"] == 1 else f"{run['threads']} threads"
    parts = [
        f"## {run['title']}, {threads}",
        _circumstances(run),
        _contestants(run),
        _verdicts(run),
        *(_profile(run, key, profile) for key, profile in run["profiles"].items()),
        _not_run(run["not_run"]),
    ]
    return "\n\n".join(part for part in parts if part)


def _circumstances(run: Mapping[str, Any]) -> str:
    machine = run["machine"]
    features = ", ".join(machine["features"]) or "no features of note"
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    sentences = [
        f"{machine['processor']} ({machine['cores']} cores{', virtual' if machine['virtual'] else ''}; {features}),"
        f" {machine['memory_gib']:.0f} GiB, {run['created'][:10]}. {versions}{_commit(run)}.",
        f"Medians of {run['rounds']} interleaved rounds.",
        _groups(run["groups"]),
        _operations(run),
        _load(run["load"]),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _commit(run: Mapping[str, Any]) -> str:
    commit = run.get("commit")
    return f", commit {commit[:12]}" if commit else ""


def _groups(groups: Sequence[Sequence[str]]) -> str:
    if len(groups) < 2:
        return ""
    told = "; ".join(", ".join(group) for group in groups)
    return f"Memory held {len(groups)} groups one after another ({told}); ratios between groups go by way of {COMMON}."


def _operations(run: Mapping[str, Any]) -> str:
    total = sum(run["operations"].values())
    if not total:
        return ""
    kinds = ", ".join(f"{kind} {count / total:.0%}" for kind, count in run["operations"].items())
    ceilings = ", ".join(f"{name} {speed:,.0f}" for name, speed in run["ceilings"].items())
    return (
        f"A call has {_billions(total)} × 10⁹ multiplications and additions ({kinds}); large matrix products attained"
        f" (10⁹ a second, in the same rounds): {ceilings or 'not measured'}."
    )


def _billions(count: int) -> str:
    return f"{count / 1e9:,.0f}" if count >= 1e11 else f"{count / 1e9:.3g}"


def _load(load: Mapping[str, Mapping[str, float]]) -> str:
    if not load:
        return ""
    others, waiting = load["others"]["median_percent"], load["waiting"]["worst_percent"]
    stolen = load.get("stolen", {}).get("median_percent", 0.0)
    found = (
        f"Other programs took {others:.1f} % of the processors in the median turn, other virtual machines"
        f" {stolen:.1f} %, waiting peers at most {waiting:.1f} %."
    )
    return f"**The machine was not free.** {found}" if others > BUSY else found


def _contestants(run: Mapping[str, Any]) -> str:
    rows = sorted(run["contestants"].values(), key=lambda one: float(one["median_s"]))
    has_shares = any("gops" in one for one in rows)
    head = [
        "",
        "s an image" if MODELS[run["model"]].is_pipeline else "s a call",
        "× float32's speed",
        "Halftone is faster by",
        "peak GiB",
        "start s",
        "error",
    ]
    if has_shares:
        head.insert(4, "of int8 ceiling")
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for one in rows:
        cells = [
            f"**{one['words']}**" if one["peer"].startswith("halftone") else one["words"],
            f"{one['median_s']:.{_digits(one['median_s'])}f} ± {_spread(one):.0f} %",
            _ratio(one["speedup_over_fp32"]),
            _ratio(one["halftone_is_faster"]),
            f"{one['peak_gib']:.1f}",
            "" if one["start_s"] is None else f"{one['start_s']:.0f}",
            f"{_percent(one['error'])}{'' if one['agrees'] else ' **wrong**'}",
        ]
        if has_shares:
            share = one.get("share_of_int8_ceiling")
            cells.insert(4, "" if share is None else f"{share:.0%}")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _ratio(ratio: Mapping[str, Any] | None) -> str:
    """Median and quartiles; a star for the way by a third contestant."""
    if ratio is None:
        return ""
    star = "*" if "via" in ratio else ""
    return f"{ratio['median']:.2f}{star} ({ratio['lower_quartile']:.2f}–{ratio['upper_quartile']:.2f})"


def _spread(one: Mapping[str, Any]) -> float:
    """Half the width of the middle half of the rounds, in percent of the median."""
    return 50 * float(one["upper_quartile_s"] - one["lower_quartile_s"]) / float(one["median_s"])


def _digits(seconds: float) -> int:
    return 2 if seconds >= 0.5 else 4


def _percent(error: float | None) -> str:
    return "" if error is None else f"{100 * error:.2g} %"


def _verdicts(run: Mapping[str, Any]) -> str:
    marks = {True: "holds", False: "**does not hold**", None: "unknown"}
    return "\n".join(f"* {one.goal}: {one.found}, {marks[one.holds]}" for one in verdicts(run))


def _profile(run: Mapping[str, Any], key: str, profile: Mapping[str, Any]) -> str:
    groups = [group for group in GROUPS if group in profile["groups"]]
    shares = ", ".join(f"{group} {profile['groups'][group]['share']:.0%}" for group in groups)
    words = run["contestants"].get(key, {}).get("words", key)
    return f"Where the time goes in {words} (profiled call of {profile['seconds']:.2f} s): {shares}."


def _not_run(reasons: Mapping[str, str]) -> str:
    return "\n".join(f"* {name} not run: {' '.join(reason.split())}" for name, reason in reasons.items())
