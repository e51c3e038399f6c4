#!/usr/bin/env bash
# Makes the file tree of Tandem's image, but for tandemd and tandemctl, of programs of this Debian with the libraries that they are linked with.
# No shell, no package manager. deploy/images/Dockerfile runs it, and so do the tests on Kubernetes, so that both have the same in their images.
#
#   root.sh DIR      DIR is made
set -euo pipefail

programs=(
	mkfs.xfs mkfs.ext4 mount umount    # what the CSI driver runs
	xfs_growfs resize2fs               # to grow a file system
	xfs_repair e2fsck                  # for the operator: kubectl exec, when a file system is damaged
)
files=(/etc/mke2fs.conf)

dir=$1
mkdir -p "$dir"/{etc,tmp,proc,sys,dev,run,var/lib,usr/{bin,sbin,lib,lib64}}
chmod 1777 "$dir/tmp"
for d in bin sbin lib lib64; do ln -s "usr/$d" "$dir/$d"; done

# Directories may be links (/lib is usr/lib), files are copied under the name that they are asked for by.
copy() {
	local to
	to="$(realpath -e "$(dirname "$1")")/$(basename "$1")"
	[[ -e $dir$to ]] || install -D -p -m "$(stat -L -c %a "$1" | tail -c 4)" "$(realpath -e "$1")" "$dir$to"
}

for f in "${files[@]}"; do copy "$f"; done
for p in "${programs[@]}"; do
	f=$(command -v "$p") || { echo "root.sh: no program $p (Debian: xfsprogs, e2fsprogs, mount)" >&2; exit 1; }
	copy "$f"
	ldd "$f" | grep -o '/[^ ]*' | while read -r lib; do copy "$lib"; done
done
