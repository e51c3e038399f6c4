#!/usr/bin/env bash
# The simulator of the replication core: seeds, simulated hours, faults by kind, and how much of the core was reached.
#   sim.sh            20,000 seeds from 1 on
#   sim.sh SEED       that seed alone, with everything that happens
#   sim.sh SEED N     N seeds from SEED on
#   sim.sh SEED "" KEEP   that seed with those of its faults alone, as a failure prints them
# With METRO in the environment it is a seed of the two sites instead of SEED.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
seed=${1:-} seeds=${2:-} keep=${3:-} pkg=./replication/core

if [[ -n ${METRO:-} ]]; then
	exec go test -count=1 -timeout 1h -run 'TestSimMetro$' -v "$pkg" -metro.first="$METRO" -metro.seeds="${seeds:-1}" -metro.keep="$keep" -sim.log="$([[ -z $seeds ]] && echo true || echo false)"
fi
if [[ -n $seed && -z $seeds ]]; then
	exec go test -count=1 -run 'TestSim$' -v "$pkg" -sim.first="$seed" -sim.seeds=1 -sim.keep="$keep" -sim.log
fi

profile=$(mktemp)
trap 'rm -f "$profile"' EXIT
go test -count=1 -timeout 10h -run 'TestSim$' -v -coverprofile="$profile" "$pkg" -sim.first="${seed:-1}" -sim.seeds="${seeds:-20000}" |
	grep -v '^coverage:\|^=== RUN'
# A line of a profile is a block of statements without a branch: where it is, how many they are, how often it ran.
awk 'NR > 1 { n += $2; blocks++; if ($3 > 0) { ran += $2; reached++ } }
	END { printf "coverage of the core: %.1f %% of its statements, %.1f %% of its branches (blocks between them)\n", 100 * ran / n, 100 * reached / blocks }' "$profile"
if [[ -z $seed ]]; then
	echo "two sites with their arbiters and operators:"
	go test -count=1 -timeout 10h -run 'TestSimMetro$' -v "$pkg" -metro.seeds=300 | grep -v '^=== \|^ok'
fi
