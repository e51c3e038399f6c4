#!/usr/bin/env bash
# Checks the model of the replication core (replication/core/model) with spin.
#
#   model.sh [NAME...]      every configuration, then every mutation, JOBS (default 2) at a time; or those named only
#   model.sh --trail NAME   why NAME fails, a line for each step
#
# A configuration has to hold in all its states; a mutation has to fail, by what stands beside it in the list.
set -euo pipefail

# Of one checker, in MiB. Without enough it does not finish, which is a failure.
memory=3000

model=$(cd "$(dirname "$0")/../../replication/core/model" && pwd)
self=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")

# plan prints a line for each name: name, what has to come out, flags.
plan() {
	awk '/^#/ || NF == 0 { next }
	FILENAME ~ /configurations$/ { bounds[$1] = substr($0, length($1) + 1); print $1, "holds" bounds[$1]; next }
	!($3 in bounds) { print "no such configuration: " $0 > "/dev/stderr"; exit 1 }
	{ more = ""; for (i = 4; i <= NF; i++) more = more " " $i; print $1, $2, bounds[$3] more, "-DM_" toupper($1) }
	' "$model/configurations" "$model/mutations"
}

# check NAME EXPECTED FLAG...: builds and runs a checker in this directory, and prints its line of the table.
check() {
	local name=$1 expected=$2 optimise=-O2 states depth result
	shift 2
	[[ $expected == holds ]] || optimise=-O0 # compiling takes longer than finding it
	cp "$model"/*.pml .
	spin -a "$@" tandem.pml >spin.log || { cat spin.log >&2; return 1; }
	# Priorities and partial order reduction exclude each other.
	gcc $optimise -w -DSAFETY -DNOREDUCE -DVECTORSZ=2048 -DMEMLIM=$memory -o pan pan.c
	TIMEFORMAT=%U
	{ time ./pan -m100000 -w22 >pan.log || true; } 2>user # what it found stands in the log
	states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' pan.log)
	depth=$(sed -n 's/.*depth reached \([0-9]*\).*/\1/p' pan.log)
	result=$(sed -n 's/^pan:1: \(.*\) (at depth.*/\1/p' pan.log)
	if [[ -n $result ]]; then
		result=$(grep -oE '[A-Z][A-Za-z0-9]*_[A-Za-z0-9_]*\)$|CONVERGENCE\)$' <<<"$result" | tr -d ')' || echo "$result")
	elif grep -qE 'Search not completed|too small|resource' pan.log || [[ -z $states ]]; then
		result='not finished'
	else
		result=holds
	fi
	printf '%-26s %9s states  depth %4s %7ss  %s\n' "$name" "${states:--}" "${depth:--}" "$(tail -n 1 user)" "$result"
	[[ $result == "$expected" ]] || { echo "$name: $expected was to come out" >&2; return 1; }
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
case ${1:-} in
--one) # of the plan, in a directory of its own
	shift
	cd "$work"
	check "$@"
	;;
--trail)
	cd "$work"
	read -r -a one < <(plan | awk -v n="${2:?which}" '$1 == n') || { echo "no such name: $2" >&2; exit 2; }
	check "${one[@]}" || true
	[[ -e tandem.pml.trail ]] || exit 0
	spin -t -p "${one[@]:2}" tandem.pml | awk -f "$model/trail.awk"
	;;
*)
	plan | { if [[ $# -gt 0 ]]; then grep -E "^($(IFS='|'; echo "$*")) "; else cat; fi; } >"$work/plan"
	xargs -P "${JOBS:-2}" -L 1 "$self" --one <"$work/plan"
	;;
esac
