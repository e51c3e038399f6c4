#!/usr/bin/env bash
# Runs `make generate-protos` on a copy of the tree and compares: the generated files that are committed must be what the
# generators write now. The tree itself is left as it is.
#
#   verify-generate.sh MAKE
set -euo pipefail

make=${1:-make}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files --cached --others --exclude-standard -z | xargs -0 -I{} sh -c 'test -e "$1" && printf "%s\0" "$1"' _ {} |
	tar --null -T - -cf - | tar -xf - -C "$copy"
mkdir -p "$copy/.cache"
ln -s "$PWD/.cache/tools" "$copy/.cache/tools"
git -C "$copy" init -q
"$make" -s -C "$copy" --no-print-directory generate-protos

bad=()
while IFS= read -r -d '' f; do
	cmp -s "$f" "$copy/$f" || bad+=("$f")
done < <(cd "$copy" && git ls-files --others --exclude-standard -z)
if [[ ${#bad[@]} -gt 0 ]]; then
	echo "generated files differ from what the generators write (make generate):" >&2
	printf '  %s\n' "${bad[@]}" >&2
	exit 1
fi
