#!/bin/bash
# build.sh DIRECTORY [REVISION]: what the kubelet tests need, into DIRECTORY.
#
#   v1.37.1/kubelet, v1.22.17/kubelet   kubelets as they were released, of the modules v1.37 and v1.22
#   target                              what pods run
#   previous/                           davit of REVISION (a tag or commit), which upgrades begin with; without one,
#                                       or without git, this tree's, by another version
#
# The first time, kubelets take ten minutes each on two cores, and Go's build cache 8 GB; after that, seconds.
set -euo pipefail
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")"
revision=${2:-}

# GOENV=off: settings of `go env -w` may be unknown to an old toolchain. -X: what a kubelet says that it is.
kubelet() { # kubelet MODULE VERSION TOOLCHAIN GOFLAGS
	local p flags="-s -w" minor=${1#v1.}
	for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
		flags+=" -X $p.gitVersion=$2 -X $p.gitMajor=1 -X $p.gitMinor=$minor -X $p.gitTreeState=clean"
	done
	echo "kubelet $2"
	(cd "$1" && GOENV=off GOFLAGS=${4:-} GOTOOLCHAIN=$3 CGO_ENABLED=0 nice go build -trimpath -ldflags "$flags" -o "$out/$2/" k8s.io/kubernetes/cmd/kubelet)
}
kubelet v1.37 v1.37.1 auto -buildvcs=false
kubelet v1.22 v1.22.17 go1.16.15

CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$out/target" ./target

top=../.. version=0.0.1-previous
if [[ -n $revision ]]; then
	top=$(mktemp -d)
	trap 'rm -rf "$top"' EXIT
	git -C ../.. archive --format=tar "$revision^{commit}" | tar -x -C "$top"
	version+=-$(git rev-parse --short "$revision")
fi
echo "davit $version"
(cd "$top" && CGO_ENABLED=0 go build -buildvcs=false -trimpath -ldflags "-s -w -X main.version=$version" -o "$out/previous/" ./cmd/davitd ./cmd/davit-monitor ./cmd/davit)
