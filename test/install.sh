#!/bin/bash
# install.sh demo|test|kubelet|images|power: install from Debian what is missing for the demonstration, for all tests, for those
# with kubelets, for the comparison of pulls, or for the trial of power cuts.
set -euo pipefail

missing=()
need() { # need PACKAGE COMMAND-OR-FILE...: PACKAGE is missing unless one of them is there
	local package=$1 what
	shift
	for what in "$@"; do
		if [[ $what == /* ]]; then
			[[ -e $what ]] && return
		elif command -v "$what" >/dev/null; then
			return
		fi
	done
	missing+=("$package")
}

need ca-certificates /etc/ssl/certs/ca-certificates.crt
need busybox-static /bin/busybox
need docker-registry docker-registry
case ${1:-} in
demo)
	need crun crun runc
	;;
images)
	need crun crun runc
	need e2fsprogs mke2fs
	;;
test | kubelet | power)
	need crun crun
	need runc runc
	need erofs-utils fsck.erofs
	need nftables nft
	need iptables iptables
	need iproute2 ip
	need containernetworking-plugins /usr/lib/cni/bridge /opt/cni/bin/bridge
	need gcc gcc # the race detector
	need libc6-dev /usr/include/stdlib.h
	need e2fsprogs mke2fs
	[[ $1 != kubelet ]] || need containerd containerd # times are compared with its
	[[ $1 != power ]] || need qemu-system-x86 qemu-system-x86_64
	;;
*)
	echo "usage: install.sh demo|test|kubelet|images|power" >&2
	exit 2
	;;
esac
[[ ${#missing[@]} -eq 0 ]] && exit 0

if [[ $EUID -ne 0 ]]; then
	echo "missing: ${missing[*]}; install them, or run as root" >&2
	exit 1
fi
echo "installing from Debian: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# Nothing that is installed here is to be started as a service of this machine.
if [[ ! -e /usr/sbin/policy-rc.d ]]; then
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod 755 /usr/sbin/policy-rc.d
	trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
log=$(mktemp)
if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
	tail -n 40 "$log" >&2
	exit 1
fi
rm -f "$log"
