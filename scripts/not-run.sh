#!/usr/bin/env bash
# Says loudly that a part of the checks was not run, and why. `make check` says it once more at its end.
set -euo pipefail
echo
echo "################################################################################"
printf '%s\n' "$1" | fold -s -w 76 | sed 's/^/# /'
echo "################################################################################"
echo
if [ -n "${NOT_RUN:-}" ]; then
    printf '%s\n' "$1" >>"$NOT_RUN"
fi
