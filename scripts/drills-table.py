#!/usr/bin/env python3
"""Prints what drills measured: a table of recovery times and recovery points. Of a drill that ran several times, the slowest run, and how
the others were."""

import json
import statistics
import sys


def shown(value, unit=""):
    """A figure, or a dash where the drill has none."""
    return "-" if value is None else f"{value}{unit}"


def line_of(drill, runs):
    """The slowest run of a drill, as cells."""
    slowest = max(runs, key=lambda run: run["rto_ms"] or 0)
    times = [run["rto_ms"] for run in runs if run["rto_ms"] is not None]
    lost = [run["lost"] for run in runs if run["lost"] is not None]
    return (
        drill,
        str(len(runs)),
        shown(slowest["rto_ms"], " ms"),
        f"{round(statistics.median(times))} ms" if times else "-",
        shown(max(lost, default=None)),
        shown(slowest["reported"]),
        shown(slowest["commits"]),
        shown(max(run["seconds"] for run in runs), " s"),
        str(slowest["seed"]),
    )


def main():
    """Reads lines of JSON, one for each run that passed."""
    runs = {}
    with open(sys.argv[1], encoding="utf-8") as results:
        for line in results:
            run = json.loads(line)
            runs.setdefault(run["drill"], []).append(run)
    head = ("drill", "passed", "slowest RTO", "median", "most lost", "at risk, as told", "acknowledged", "took", "seed of the slowest")
    table = [head] + [line_of(drill, of_drill) for drill, of_drill in runs.items()]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    print()
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


if __name__ == "__main__":
    main()
