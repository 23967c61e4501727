"""The tables of `benchmarks.approximate`: every setting, the aims, and the papers' figures beside what they published.

Again from committed results: `python -m benchmarks.approximate_tables`.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.settings import ENOUGH, NINE, SETS
from benchmarks.tables import NAMES, Plain, markdown
from krypton.results.quality import MIN_EXACT_RANGE

FLAT = "base score everywhere"
CLOSE = 0.05  # an estimate of SSIM that is no further off is a good one

KINDS = ("freeze", "keep", "tau", "drilldown")  # of what is left out

Row = dict[str, Any]


def corrected(clause: str, step: int) -> str:
    """The name of a cheap map that is corrected by its errors on a lattice."""
    return f"{clause}; corrected by its errors at every {step}{'nd' if step == 2 else 'th'} row and column"


@dataclass(frozen=True)
class Aim:
    """What is wanted of a model, against channels_last: so many times faster where the median SSIM is so high, among the
    clauses that contain a text (a drill-down), on the pictures of one set or of all."""

    title: str
    least_ssim: float
    faster: dict[str, float]
    set: str | None = None

    def allows(self, clause: str) -> bool:
        if self.set is None:
            return "speedup" not in clause and clause != FLAT
        share, speedup = SETS[self.set].drilldown
        return f"drilldown => {share:g}, speedup => {speedup:g}" in clause


EVERY_2ND = "drilldown => 0, speedup => 3.9"
"""What computes every second row and column exactly, and interpolates the rest."""

OVERVIEW = {
    "keep 0.999": "keep => 0.999",
    "keep 0.99": "keep => 0.99",
    "the same, tolerance 0.05": "tolerance => 0.05, keep => 0.99",
    "tau 0.6": "tau => 0.6",
    "every 2nd": EVERY_2ND,
}
"""Columns of the table of all settings, and their clauses."""

AIMS = (
    Aim("whole map, SSIM ≥ 0.90", 0.90, {"vgg16": 20, "resnet18": 6.5, "inception_v3": 4}),
    Aim("whole map, SSIM ≥ 0.97", 0.97, {"vgg16": 16, "resnet18": 5, "inception_v3": 3}),
    Aim("OCT setting, SSIM ≥ 0.80", 0.80, {"vgg16": 35, "resnet18": 15, "inception_v3": 8}, "retina"),
    Aim("X-ray setting, SSIM ≥ 0.90", 0.90, {"vgg16": 14, "resnet18": 5, "inception_v3": 3.7}, "xray"),
    Aim("ImageNet setting, SSIM ≥ 0.85", 0.85, {"vgg16": 20, "resnet18": 8.5, "inception_v3": 4.7}, "natural"),
)

PUBLISHED = {
    "vgg16": {"exact": 5.4, "retina": 34.5, "xray": 13.8, "natural": 19.9},
    "resnet18": {"exact": 2.1, "retina": 14.8, "xray": 4.9, "natural": 8.5},
    "inception_v3": {"exact": 1.5, "retina": 8.0, "xray": 3.7, "natural": 4.7},
}
"""The papers' Figure 11 on the CPU: speed-ups over naive inference; τ was chosen for an SSIM of 0.9 there, too."""


def of(rows: Sequence[Row]) -> list[Plain]:
    """A table for every setting, then all in one, the aims, estimates of quality, and Figure 11's approximate bars."""
    settings = dict.fromkeys(row["setting"] for row in rows)
    found = [of_setting([row for row in rows if row["setting"] == setting]) for setting in settings]
    return [table for table in [*found, overview(rows), aims(rows), estimates(rows), figure_11(rows)] if table.rows]


def counts(row: Row) -> bool:
    """Whether a picture counts in statistics: its model is good, and its exact map not flat."""
    return bool(row.get("accuracy", 1.0) >= ENOUGH and row["range"] >= MIN_EXACT_RANGE)


def of_setting(rows: Sequence[Row]) -> Plain:
    """Medians over the pictures; those whose exact map is flat have no SSIM, and do not count there."""
    headings = ("WITH", "over exact", "over naive", "SSIM, median", "least", "RMSE / range", "rank correlation", "top 10 %")
    lines = [_line(name, [row["maps"][name] for row in rows if name in row["maps"]]) for name in _clauses(rows)]
    first, flat = rows[0], sum(row["range"] < MIN_EXACT_RANGE for row in rows)
    title = f"{first['setting']}: {len(rows)} pictures, {first['positions']:,} positions"
    title += f"; {first['accuracy']:.1%} held out" if "accuracy" in first else ""
    title += "" if first.get("accuracy", 1.0) >= ENOUGH else " (does not count)"
    title += f"; {flat} maps are flat" if flat else ""
    exact = ("exact", "1.0×", _exact_over_naive(rows), "1.000", "1.000", "0.0%", "1.00", "1.00", "–")
    return Plain(title, (*headings, f"estimate within {CLOSE}"), [exact, *lines])


def _exact_over_naive(rows: Sequence[Row]) -> str:
    return _median_times([(row["seconds"]["naive"], row["seconds"]["exact"]) for row in rows if row["seconds"] is not None])


def _over(of: Iterable[dict[str, Any]], side: str) -> str:
    """How many times faster maps are than naive or exact ones, where they were timed."""
    return _median_times([(entry[side], entry["seconds"]) for entry in of if entry["seconds"] is not None])


def _median_times(pairs: Sequence[tuple[float, float]]) -> str:
    return f"{statistics.median(slow / fast for slow, fast in pairs):.1f}×" if pairs else "–"


def _clauses(rows: Iterable[Row]) -> list[str]:
    """As they come; what no clause gives is last."""
    return sorted(dict.fromkeys(name for row in rows for name in row["maps"]), key=lambda name: (";" in name, name == FLAT))


def _line(name: str, of: list[dict[str, Any]]) -> tuple[str, ...]:
    known = [entry["ssim"] for entry in of if entry["ssim"] is not None]
    said = [abs(e["said"] - e["ssim"]) <= CLOSE for e in of if e["said"] is not None and e["ssim"] is not None]
    ranks = [entry["spearman"] for entry in of if entry["spearman"] is not None]
    return (
        f"`{name}`" if "=>" in name and ";" not in name else name,
        _over(of, "exact"),
        _over(of, "naive"),
        f"{statistics.median(known):.3f}" if known else "–",
        f"{min(known):.3f}" if known else "–",
        f"{statistics.median(entry['rmse'] for entry in of):.1%}",
        f"{statistics.median(ranks):.2f}" if ranks else "–",
        f"{statistics.median(entry['top10'] for entry in of):.2f}",
        f"{statistics.mean(said):.0%}" if said else "–",
    )


def overview(rows: Sequence[Row]) -> Plain:
    """Every setting in one line: how many times faster than naive inference, and the median SSIM."""
    lines = []
    for setting in _papers_settings(rows):
        own = [row for row in rows if row["setting"] == setting and counts(row)]
        name = setting.partition("/")[2]
        share, speedup = SETS[name].drilldown
        clauses = [*OVERVIEW.values(), f"drilldown => {share:g}, speedup => {speedup:g}"]
        cells = [_cell([row["maps"][clause] for row in own if clause in row["maps"]]) for clause in clauses]
        cells.append(_cell([row["maps"][FLAT] for row in own if FLAT in row["maps"]]))
        lines.append((f"{titled(setting)} (r {share:g}, s {speedup:g})", str(len(own)), _exact_over_naive(own), *cells))
    headings = ("setting", "pictures", "exact", *OVERVIEW, "drill-down (r, s)", FLAT)
    return Plain("settings: times faster than naive inference, and SSIM, medians", headings, lines)


def titled(setting: str) -> str:
    """A setting as tables and the papers name it."""
    model, _, name = setting.partition("/")
    return f"{NAMES[model]}, {SETS[name].title}"


def _papers_settings(rows: Iterable[Row]) -> list[str]:
    known = {str(setting) for setting in NINE}
    return [setting for setting in dict.fromkeys(row["setting"] for row in rows) if setting in known]


def _cell(of: list[dict[str, Any]]) -> str:
    known = [entry["ssim"] for entry in of if entry["ssim"] is not None]
    return f"{_over(of, 'naive')}, {statistics.median(known):.3f}" if known else "–"


def aims(rows: Sequence[Row]) -> Plain:
    """For every aim and model the fastest clause that is good enough, on the pictures that count; of clauses that were measured
    on at least half as many pictures as the one that was on most."""
    lines = []
    for aim in AIMS:
        for model, wanted in aim.faster.items():
            own = [row for row in rows if row["setting"].startswith(f"{model}/") and counts(row)]
            own = [row for row in own if aim.set is None or row["setting"] == f"{model}/{aim.set}"]
            lines.append((aim.title, NAMES[model], f"{wanted:g}×", *_best(aim, own, wanted)))
    return Plain("aims, against eager channels_last", ("aim", "model", "wanted", "reached", "with", "SSIM", "maps"), lines)


def _best(aim: Aim, rows: Sequence[Row], wanted: float) -> tuple[str, str, str, str]:
    able, good = [], False
    measured = {clause: [row["maps"][clause] for row in rows if clause in row["maps"]] for clause in _clauses(rows)}
    most = max((len(of) for clause, of in measured.items() if aim.allows(clause)), default=0)
    for clause, of in measured.items():
        if not aim.allows(clause) or len(of) < most / 2:  # a few maps may be good ones by chance
            continue
        ssim = statistics.median(entry["ssim"] for entry in of)
        good = good or ssim >= aim.least_ssim
        ratios = [entry["naive"] / entry["seconds"] for entry in of if entry["seconds"] is not None]
        if ssim >= aim.least_ssim and ratios:
            able.append((statistics.median(ratios), clause, ssim, len(of)))
    if not able:
        return ("not measured" if not rows else "not timed" if good else "none is good enough"), "–", "–", str(len(rows))
    faster, clause, ssim, count = max(able)
    return f"{faster:.1f}× {'≥' if faster >= wanted else '<'} {wanted:g}", clause, f"{ssim:.3f}", str(count)


def estimates(rows: Sequence[Row]) -> Plain:
    """How often `m.quality` was right, by what was left out; maps of good models that are not flat."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for clause, entry in row["maps"].items() if counts(row) else ():
            if entry["said"] is not None and entry["ssim"] is not None:
                kind = " and ".join(name for name in KINDS if name in clause)
                found.setdefault(kind, []).append(entry["said"] - entry["ssim"])
    found["all"] = [difference for of in found.values() for difference in of]
    lines = [
        (kind, str(len(of)), f"{statistics.mean(abs(x) <= CLOSE for x in of):.0%}", f"{statistics.median(of):+.3f}")
        for kind, of in found.items()
        if of
    ]
    headings = ("left out by", "maps", f"within {CLOSE}", "estimate less truth, median")
    return Plain("estimates of SSIM by m.quality", headings, lines)


def figure_11(rows: Sequence[Row]) -> Plain:
    """Speed-ups over naive inference: the papers', and here exact and with the papers' drill-down of the set."""
    lines = []
    for setting in _papers_settings(rows):
        model, name = setting.split("/")
        own = [row for row in rows if row["setting"] == setting and counts(row)]
        clause = "drilldown => {:g}, speedup => {:g}".format(*SETS[name].drilldown)
        entries = [row["maps"][clause] for row in own if clause in row["maps"]]
        known = [entry["ssim"] for entry in entries if entry["ssim"] is not None]
        lines.append(
            (
                titled(setting),
                f"{PUBLISHED[model]['exact']}×",
                _exact_over_naive(own),
                f"{PUBLISHED[model][name]}×",
                _over(entries, "naive"),
                f"{statistics.median(known):.3f}" if known else "–",
            )
        )
    headings = ("setting", "published: exact", "here", "published: approximate", "here, same drill-down, no τ", "SSIM")
    return Plain("Figure 11, over naive inference on the CPU", headings, lines)


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/approximate.json")
    print("\n".join(markdown(table) for table in of(json.loads(path.read_text())["results"])))


if __name__ == "__main__":
    main()
