#!/bin/bash
# build.sh DIRECTORY: containerd as it was released, of the module rival, into DIRECTORY: the first time some minutes, then seconds.
set -euo pipefail
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/rival"
version=$(go list -m -f '{{.Version}}' github.com/containerd/containerd/v2)
echo "containerd $version"
CGO_ENABLED=0 nice go build -trimpath -ldflags "-s -w -X github.com/containerd/containerd/v2/version.Version=$version" \
	-o "$out/" github.com/containerd/containerd/v2/cmd/containerd
