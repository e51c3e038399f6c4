#!/usr/bin/env bash
# Installs the Debian packages whose programs the tests, the demo and the benchmark drive, those that are missing only.
#
#   deps.sh [--optional] [test|demo|bench|model|vm|kube]     (default: test)
#
# Without root, or where apt-get is not to be had, one line says what is missing; that is an error unless --optional.
set -euo pipefail

optional=
[[ ${1:-} != --optional ]] || { optional=1; shift; }
for_what=${1:-test}

# A file that the package brings, and the package. Globs may match more than one version.
demo=(
	/usr/sbin/mkfs.xfs                       xfsprogs
	/usr/bin/fusermount3                     fuse3
	'/usr/lib/postgresql/*/bin/postgres'     postgresql
	/usr/sbin/losetup                        mount
	/usr/bin/sqlite3                         sqlite3
	/usr/bin/nbdinfo                         libnbd-bin
	'/usr/lib/python3/dist-packages/nbd.py'  python3-libnbd
	/usr/bin/nbdkit                          nbdkit
	'/usr/lib/*/nbdkit/plugins/nbdkit-python-plugin.so'  nbdkit-plugin-python
)
bench=(
	/usr/bin/fio                             fio
)
model=(
	/usr/bin/spin                            spin
	/usr/bin/gcc                             gcc
)
vm=(
	/usr/bin/qemu-system-x86_64              qemu-system-x86
	/usr/share/seabios/bios-256k.bin         seabios
	/usr/sbin/mkfs.xfs                       xfsprogs
	/usr/sbin/mkfs.ext4                      e2fsprogs
	/usr/sbin/ip                             iproute2
	/usr/sbin/dmsetup                        dmsetup
	/usr/bin/xz                              xz-utils
)
kube=(
	/usr/bin/containerd                      containerd
	/usr/sbin/runc                           runc
	/usr/lib/cni/bridge                      containernetworking-plugins
	/usr/sbin/iptables                       iptables
	/usr/sbin/conntrack                      conntrack
	/bin/busybox                             busybox-static
	/usr/sbin/ip                             iproute2
	/usr/sbin/mkfs.xfs                       xfsprogs
	/usr/sbin/mkfs.ext4                      e2fsprogs
	'/usr/lib/postgresql/*/bin/postgres'     postgresql
)
case $for_what in
kube)  want=("${kube[@]}") ;;
vm)    want=("${vm[@]}") ;;
demo)  want=("${demo[@]}") ;;
bench) want=("${demo[@]}" "${bench[@]}") ;;
model) want=("${model[@]}") ;;
test)  want=("${demo[@]}" "${bench[@]}"
	/usr/bin/qemu-img                        qemu-utils
	/usr/sbin/mkfs.ext4                      e2fsprogs
	/usr/sbin/ip                             iproute2) ;;
*)     echo "deps.sh: unknown set '$for_what' (test, demo, bench, model, vm or kube)" >&2; exit 2 ;;
esac

missing=()
for ((i = 0; i < ${#want[@]}; i += 2)); do
	compgen -G "${want[i]}" >/dev/null || missing+=("${want[i + 1]}")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
	echo "missing Debian packages: ${missing[*]} (install them as root: apt-get install ${missing[*]})" >&2
	[[ -n $optional ]] && exit 0 || exit 1
fi

echo "installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
	tail -n 15 "$log" >&2
	echo "could not install: ${missing[*]}" >&2
	[[ -n $optional ]] && exit 0 || exit 1
fi
