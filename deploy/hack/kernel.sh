#!/usr/bin/env bash
# Downloads Debian's cloud kernel with apt and unpacks it, installing nothing: the tests of deploy/vm boot it.
#
#   kernel.sh DIR [SUITE]     prints the directory below DIR with boot/ and lib/modules/
#
# SUITE is one of Debian's (trixie), from the same mirror as this machine's own, which is the default.
set -euo pipefail

dir=$1 suite=${2:-}
mkdir -p "$dir"
if ! command -v apt-get >/dev/null; then
	echo "missing: apt-get, to fetch Debian's package linux-image-cloud-amd64" >&2
	exit 1
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Lists of another suite are kept apart from the machine's.
apt=()
if [[ -n $suite ]]; then
	dir=$(mkdir -p "$dir/$suite/apt/lists/partial" "$dir/$suite/apt/cache/archives/partial" && realpath "$dir/$suite")
	mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' | grep -v security | sort -u | sed q)
	if [[ -z $mirror ]]; then
		echo "missing: a mirror of Debian's in apt's sources, for the kernel of $suite" >&2
		exit 1
	fi
	keys=/usr/share/keyrings/debian-archive-keyring.gpg
	echo "deb [signed-by=$keys] $mirror $suite main" >"$dir/apt/sources.list"
	apt=(-o "Dir::Etc::SourceList=$dir/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::lists=$dir/apt/lists"
		-o "Dir::Cache=$dir/apt/cache" -o Acquire::Languages=none)
fi

# The package of that name only depends on the one that has the newest kernel.
newest() { apt-cache "${apt[@]}" depends linux-image-cloud-amd64 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }' || true; } # nothing before apt-get update
kernel=$(newest)
have=$(find "$dir" -mindepth 1 -maxdepth 1 -name 'linux-image-*-cloud-amd64' | sort -V | tail -n 1)
if [[ -n $have && ( -z $kernel || $have == "$dir/$kernel" ) ]]; then
	echo "$have"
	exit 0
fi

tmp=$(mktemp -d "$dir/fetch.XXXXXX")
trap 'rm -rf "$log" "$tmp"' EXIT
fetch() { kernel=$(newest); [[ -n $kernel ]] && (cd "$tmp" && apt-get "${apt[@]}" download "$kernel"); }
if ! { fetch || { apt-get "${apt[@]}" update && fetch; }; } >"$log" 2>&1 </dev/null; then
	echo "missing: Debian's package linux-image-cloud-amd64 cannot be downloaded: $(grep -m 1 '^E:' "$log" || tail -n 1 "$log")" >&2
	exit 1
fi
dpkg-deb -x "$tmp"/*.deb "$tmp/unpacked"
if [[ -d $tmp/unpacked/usr/lib/modules ]]; then # since trixie
	mkdir -p "$tmp/unpacked/lib" && mv "$tmp/unpacked/usr/lib/modules" "$tmp/unpacked/lib/"
fi
find "$tmp/unpacked/lib/modules" -name '*.ko.xz' -exec xz -d {} +
mv "$tmp/unpacked" "$dir/$kernel"
echo "$dir/$kernel"
