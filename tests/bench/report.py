"""What was measured, as JSON and as Markdown tables."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field

from .commands import COMMANDS, OURS

YARDSTICKS = ("uvicorn", "granian")


@dataclass
class Row:
    """One workload: a number a round for each server (None: it failed), and how busy it was."""

    name: str
    title: str
    unit: str  # req/s, msg/s: more is better; ms, MB, KB: less is better
    aim: str
    rounds: dict[str, list[float | None]] = field(default_factory=dict)
    busy: dict[str, list[float]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)  # why a server is left out
    disturbed: list[float] = field(default_factory=list)  # others' share of the server's core

    def median(self, server: str) -> float | None:
        """Return the median over the rounds that went well."""
        values = [value for value in self.rounds.get(server, ()) if value is not None]
        return statistics.median(values) if values else None

    def ratios(self, server: str, to: str) -> list[float]:
        """Return the ratio within each round, smallest first."""
        pairs = zip(self.rounds.get(server, ()), self.rounds.get(to, ()))
        return sorted(mine / theirs for mine, theirs in pairs if mine is not None and theirs)

    def ratio(self, server: str, to: str) -> float | None:
        """Return the median of the ratios."""
        ratios = self.ratios(server, to)
        return statistics.median(ratios) if ratios else None

    def spread(self) -> str:
        """Return how far our ratios lie apart, to judge a change by."""
        texts = []
        for yardstick in YARDSTICKS:
            ratios = self.ratios(OURS, yardstick)
            if ratios:
                low, middle, high = ratios[0], statistics.median(ratios), ratios[-1]
                texts.append(f"; × {yardstick} {middle:.2f} ({low:.2f}..{high:.2f})")
        return "".join(texts)

    def waits(self, server: str) -> bool:
        """Return whether the server's core was idle a good part of the time."""
        return bool(self.busy.get(server)) and statistics.median(self.busy[server]) < 0.9

    def cell(self, server: str) -> str:
        """Return the median, and the ratio to the first yardstick."""
        value = self.median(server)
        if value is None:
            return "failed" if server in self.reasons else ""
        text = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
        ratio = self.ratio(server, YARDSTICKS[0])
        if ratio is not None and server != YARDSTICKS[0]:
            text += f" ({ratio:.2f})"
        return text + ("\\*" if self.waits(server) else "")


@dataclass
class Report:
    """A whole run."""

    date: str
    machine: str
    versions: dict[str, str]
    how: str
    rows: list[Row] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """Return everything, for latest.json."""
        return asdict(self)

    def markdown(self) -> str:
        """Return the tables, with date, versions and machine."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines = [f"{self.date}, {self.machine}.", f"{versions}.", f"{self.how}", ""]
        faster = [row for row in self.rows if row.unit.endswith("/s")]
        lighter = [row for row in self.rows if not row.unit.endswith("/s")]
        if faster:
            lines += table(faster, "requests or messages per second")
            lines += [
                "",
                f"In brackets the ratio to {YARDSTICKS[0]}[standard]. \\* the core was idle more "
                "than a tenth of the time: latency or the load was the limit.",
            ]
        if lighter:
            lines += ["", *table(lighter, "weight (less is better)")]
        lines += self.failures()
        return "\n".join(lines) + "\n"

    def failures(self) -> list[str]:
        """Return a line for each server that was left out somewhere, with the workloads."""
        left_out: dict[tuple[str, str], list[str]] = {}
        for row in self.rows:
            for server, reason in row.reasons.items():
                left_out.setdefault((server, reason), []).append(row.name)
        return [
            line
            for (server, reason), rows in left_out.items()
            for line in ("", f"Left out: {server} in {', '.join(rows)}: {reason}")
        ]


def table(rows: list[Row], heading: str) -> list[str]:
    """Return one Markdown table, with a column for each server that has a number in it."""
    servers = [name for name in COMMANDS if any(row.median(name) is not None for row in rows)]
    titles = [heading, *servers]
    ours = OURS in servers
    if ours:
        titles += [f"× {YARDSTICKS[0]}", f"× {YARDSTICKS[1]}", "aim"]
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
    for row in rows:
        title = row.title if row.unit.endswith("/s") else f"{row.title}, {row.unit}"
        cells = [title, *(row.cell(server) for server in servers)]
        if ours:
            ratios = [row.ratio(OURS, yardstick) for yardstick in YARDSTICKS]
            cells += ["" if ratio is None else f"**{ratio:.2f}**" for ratio in ratios] + [row.aim]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
