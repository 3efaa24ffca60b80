#!/usr/bin/env python3
"""Says which rooms of a crate import each other in a circle. A room is a file or a folder right below `src/`; what a crate's root
exports counts for nothing."""

import pathlib
import re
import sys

# Circles that are there. A new one fails; one that is gone is to be taken out of this list.
KNOWN = {
}

USE = re.compile(r"\b(?:crate|super)::(?:\{([^}]*)\}|([a-z_]+))", re.DOTALL)


def room_of(source, path):
    """The room that a file is in."""
    return path.relative_to(source).parts[0].removesuffix(".rs")


def imports(source):
    """The rooms that each room imports, with a place for each."""
    roots = {"lib", "main", "bin"}
    rooms = {room_of(source, path) for path in source.rglob("*.rs")} - roots
    found = {room: {} for room in rooms}
    for path in sorted(source.rglob("*.rs")):
        room = room_of(source, path)
        if room in roots:
            continue
        depth = len(path.relative_to(source).parts) - (2 if path.name == "mod.rs" else 1)
        # Tests may look around.
        text = path.read_text(encoding="utf-8").split("#[cfg(test)]")[0]
        text = re.sub(r"//[^\n]*", "", text)
        for match in USE.finditer(text):
            # `super` is the crate only right below it.
            if match.group(0).startswith("super") and depth > 0:
                continue
            for name in re.findall(r"(?:^|,)\s*([a-z_]+)", match.group(1) or match.group(2)):
                if name in rooms and name != room:
                    line = text.count("\n", 0, match.start()) + 1
                    found[room].setdefault(name, f"{path}:{line}")
    return found


def circles(graph):
    """The shortest circle through each room that is in one, each circle once."""
    seen = set()
    for start in sorted(graph):
        paths = [[start]]
        reached = {start}
        while paths:
            path = paths.pop(0)
            for follows in sorted(graph[path[-1]]):
                if follows == start:
                    if frozenset(path) not in seen:
                        seen.add(frozenset(path))
                        yield path + [start]
                    paths = []
                    break
                if follows not in reached:
                    reached.add(follows)
                    paths.append(path + [follows])


def main():
    """Looks at every crate of the workspace."""
    status = 0
    for manifest in sorted(pathlib.Path(".").glob("*/Cargo.toml")):
        source = manifest.parent / "src"
        if manifest.parent.name in ("fuzz", "tests") or not source.is_dir():
            continue
        graph = imports(source)
        known = KNOWN.get(manifest.parent.name, [])
        found = list(circles(graph))
        for gone in [circle for circle in known if circle not in [set(each) for each in found]]:
            status = 1
            print(f"{source}: {' and '.join(sorted(gone))} form no circle any more: take it out of KNOWN here")
        for circle in found:
            if set(circle) in known:
                continue
            status = 1
            print(f"{source}: a circle of imports: {' -> '.join(circle)}", file=sys.stderr)
            for room, follows in zip(circle, circle[1:]):
                print(f"  {graph[room][follows]}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
