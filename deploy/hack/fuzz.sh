#!/usr/bin/env bash
# Runs every fuzz target of the module for the given time, one after the other (go test takes one at a time).
#
#   fuzz.sh 20s
set -euo pipefail

time=${1:?how long for each target, as in 20s}
failed=()
while read -r file; do
	dir=./$(dirname "$file")
	while read -r target; do
		echo "== $dir $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$dir" || failed+=("$dir $target")
	done < <(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file")
done < <(git ls-files --cached --others --exclude-standard '*_test.go' | xargs grep -l '^func Fuzz' || true)

[[ ${#failed[@]} -eq 0 ]] || { printf 'fuzzing failed: %s\n' "${failed[@]}" >&2; exit 1; }
