#!/bin/bash
# kernel.sh DIRECTORY: Debian's kernel for virtual machines and its modules, unpacked into DIRECTORY; nothing is installed.
set -euo pipefail
[[ -e $1/done ]] && exit 0
rm -rf "$1" && mkdir -p "$1"
cd "$1"
package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')
echo "fetching $package"
apt-get -o APT::Sandbox::User=root download "$package" >/dev/null
dpkg-deb -x "$package"_*.deb .
rm "$package"_*.deb
depmod -b . "${package#linux-image-}"
touch done
