#!/bin/bash
# build.sh DIRECTORY: containerd, and a program that fills stores of containers/storage, into DIRECTORY: the first time some minutes, then seconds.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p "$1"
test/images/build.sh "$1"
out=$(cd "$1" && pwd)
cd test/stores/storage
echo "containers/storage $(go list -m -f '{{.Version}}' go.podman.io/storage)"
CGO_ENABLED=0 nice go build -trimpath -ldflags '-s -w' -tags 'exclude_graphdriver_btrfs containers_image_openpgp' -o "$out/storage" .
