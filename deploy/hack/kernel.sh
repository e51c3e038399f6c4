#!/usr/bin/env bash
# Downloads Debian's cloud kernel with apt and unpacks it, installing nothing: the tests of deploy/vm boot it.
#
#   kernel.sh DIR     prints the directory below DIR with boot/ and lib/modules/
set -euo pipefail

dir=$1
mkdir -p "$dir"
if ! command -v apt-get >/dev/null; then
	echo "missing: apt-get, to fetch Debian's package linux-image-cloud-amd64" >&2
	exit 1
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# The package of that name only depends on the one that has the newest kernel.
newest() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }'; }
kernel=$(newest)
have=$(find "$dir" -mindepth 1 -maxdepth 1 -name 'linux-image-*-cloud-amd64' | sort -V | tail -n 1)
if [[ -n $have && ( -z $kernel || $have == "$dir/$kernel" ) ]]; then
	echo "$have"
	exit 0
fi

tmp=$(mktemp -d "$dir/fetch.XXXXXX")
trap 'rm -rf "$log" "$tmp"' EXIT
fetch() { kernel=$(newest); [[ -n $kernel ]] && (cd "$tmp" && apt-get download "$kernel"); }
if ! { fetch || { apt-get update && fetch; }; } >"$log" 2>&1 </dev/null; then
	echo "missing: Debian's package linux-image-cloud-amd64 cannot be downloaded: $(grep -m 1 '^E:' "$log" || tail -n 1 "$log")" >&2
	exit 1
fi
dpkg-deb -x "$tmp"/*.deb "$tmp/unpacked"
mv "$tmp/unpacked" "$dir/$kernel"
echo "$dir/$kernel"
