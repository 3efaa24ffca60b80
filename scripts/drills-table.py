#!/usr/bin/env python3
"""Prints what drills measured: a table of recovery times and recovery points."""

import json
import sys

rows = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
table = [("drill", "RTO", "commits lost (RPO)", "at risk, as told", "acknowledged", "took", "seed")]


def shown(value, unit=""):
    """A figure, or a dash where the drill has none."""
    return "-" if value is None else f"{value}{unit}"


for row in rows:
    table.append(
        (
            row["drill"],
            shown(row["rto_ms"], " ms"),
            shown(row["lost"]),
            shown(row["reported"]),
            shown(row["commits"]),
            shown(row["seconds"], " s"),
            str(row["seed"]),
        )
    )
widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
print()
for line in table:
    print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
