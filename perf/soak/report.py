"""The result of the soak: failures, and tables for readers. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from perf import stats
from perf.soak import world
from perf.soak.figures import Figures, Growth, growth
from perf.soak.result import Result

# The warm-up in seconds, and its largest share of the whole time.
_WARM_UP, _WARM_UP_SHARE = 600.0, 0.25
# Descriptors and threads may grow by this much, because their number varies with requests.
_SLACK = 4
# For how many consecutive samples, a minute apart, the agent that is killed may be absent.
_MOST_ABSENT = 3
_ROWS = 12
_MAPS = ("nn_endpoint", "nn_ipcache", "nn_policy", "nn_frontend", "nn_ct")


def grown(result: Result) -> Growth:
    watched = [entry for entry in result.figures if entry.node == world.WATCHED]
    return growth(watched, min(_WARM_UP, result.settings.minutes * 60 * _WARM_UP_SHARE))


def failures(result: Result) -> list[str]:
    """All failures of the soak; [] if it passed."""
    found = list(result.errors)
    for pod, counts in result.probes.items():
        kind = "got through" if pod.startswith("stranger") else "lost or got through"
        found += [f"{pod}: {name}: {c['bad']} {kind}: {c['notes'][:3]}" for name, c in counts.items() if c["bad"]]
        # No count at all is a failure, because a probe that never ran proves nothing.
        found += [f"{pod}: {name}: nothing was tried" for name, c in counts.items() if not c["ok"] and not c["bad"]]
        if not counts:
            found.append(f"{pod}: no probe reported")
    found += [f"left over: {entry}" for entry in result.leftover]
    found += absences(result.figures)
    found += result.troubles.get("late", [])
    change = grown(result)
    if change.judged and change.mib_per_hour > result.settings.mib_per_hour:
        found.append(f"the agent's memory grew by {change.mib_per_hour} MiB in an hour")
    for name, (first, last) in (("descriptors", change.descriptors), ("threads", change.threads)):
        if last > first + _SLACK:
            found.append(f"{name} of the agent grew from {first} to {last}")
    return found


def absences(figures: Sequence[Figures]) -> list[str]:
    """A sentence for each node whose agent was absent: at any time if it is never killed, else for longer than a
    restart takes."""
    found = []
    for node in world.NODES:
        longest = current = 0
        for entry in figures:
            if entry.node == node:
                current = 0 if entry.pid else current + 1
                longest = max(longest, current)
        if longest > (0 if node == world.WATCHED else _MOST_ABSENT):
            found.append(f"{node}'s agent did not answer {longest} times, one after the other")
    return found


def text(result: Result, found: Sequence[str]) -> str:
    troubles, lines = result.troubles, []
    if troubles:
        lines.append(
            f"{result.settings.minutes:g} minutes: {troubles['flips']} labels flipped, {troubles['pods']} pods in "
            f"{troubles['batches']} batches made and deleted by force, {troubles['outages']} API outages "
            f"({troubles['outageSeconds']:g} s), {troubles['kills']} kills of {world.KILLED}'s agent"
        )
        ready = troubles["readySeconds"]
        if ready:
            lines.append(
                f"an unrelated pod after each batch was Ready after p50 {stats.percentile(ready, 50):.2f}, "
                f"p95 {stats.percentile(ready, 95):.2f}, most {max(ready):.2f} s ({len(ready)} without an outage)"
            )
    lines += [f"slow: {entry}" for entry in troubles.get("slow", [])]
    lines += _probes(result)
    for node in world.NODES:
        lines += _table([entry for entry in result.figures if entry.node == node])
    change = grown(result)
    judged = "" if change.judged else " (too short to judge)"
    lines.append(
        f"{world.WATCHED}'s agent after the warm-up: {change.mib_per_hour:+.2f} MiB an hour{judged}, descriptors "
        f"{change.descriptors[0]} then {change.descriptors[1]}, threads {change.threads[0]} then {change.threads[1]}"
    )
    lines += [f"dropped, and allowed: {entry}" for entry in result.drops[:_ROWS]]
    lines += [f"FAILED: {entry}" for entry in found] or ["nothing got through, nothing was lost, nothing grew"]
    return "\n".join(lines)


def _probes(result: Result) -> list[str]:
    lines = []
    for pod, counts in result.probes.items():
        ok, bad, slow = (sum(entry[key] for entry in counts.values()) for key in ("ok", "bad", "slow"))
        lines.append(f"{pod}: {ok:,} calls as policy says, {bad} not, {slow} of them slow, to {len(counts)} targets")
    return lines


def _table(entries: Sequence[Figures]) -> list[str]:
    if not entries:
        return []
    step = max(len(entries) // _ROWS, 1)
    shown = list(entries[::step])
    if shown[-1] is not entries[-1]:
        shown.append(entries[-1])
    head = ("minute", "RSS MiB", "anonymous", "descriptors", "threads", "namespaces", "nsids", *_MAPS)
    rows = [_cells(entry) for entry in shown]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [f"{entries[0].node}'s agent"]
    padded = ([cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in (head, *rows))
    return lines + ["  " + "  ".join(row) for row in padded]


def _cells(entry: Figures) -> tuple[str, ...]:
    memory = (f"{entry.at / 60:.1f}", f"{entry.rss / 1024:.1f}", f"{entry.anonymous / 1024:.1f}")
    counts = (entry.descriptors, entry.threads, entry.namespaces, entry.nsids)
    return (*memory, *map(str, counts), *(str(entry.maps.get(name, "-")) for name in _MAPS))
