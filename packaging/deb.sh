#!/bin/sh
# deb.sh VERSION ARCH DIR: make DIR/davit_VERSION_ARCH.deb of what `make build`
# has left in bin. Needs dpkg-deb. The same input gives the same file where
# SOURCE_DATE_EPOCH is set, or in a git tree.
set -eu
umask 022
here=$(dirname "$0")
version=$(printf %s "$1" | sed 's/-/~/') arch=$2 out=$3 # 1.0.0-rc.1 comes before 1.0.0
: "${SOURCE_DATE_EPOCH:=$(git -C "$here" log -1 --format=%ct 2>/dev/null || date +%s)}"
export SOURCE_DATE_EPOCH

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
chmod 755 "$stage"
make --no-print-directory -C "$here/.." install-files DESTDIR="$stage" PREFIX=/usr
doc=$stage/usr/share/doc/davit
install -d "$doc" "$stage/DEBIAN"
install -m 644 "$here/debian/copyright" "$doc/copyright"
install -D -m 644 "$here/debian/lintian-overrides" "$stage/usr/share/lintian/overrides/davit"
printf 'davit (%s) stable; urgency=medium\n\n  * See https://github.com/davit-runtime/davit.\n\n -- The davit authors <davit@users.noreply.github.com>  %s\n' \
	"$version" "$(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$doc/changelog.gz"
(cd "$stage" && find usr -type f | LC_ALL=C sort | xargs md5sum) >"$stage/DEBIAN/md5sums"
size=$(find "$stage/usr" -type f -printf '%s\n' | awk '{ n += int(($1 + 1023) / 1024) } END { print n }')
sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$arch/" -e "s/@SIZE@/$size/" \
	"$here/debian/control" >"$stage/DEBIAN/control"
install -m 755 "$here/debian/postinst" "$here/debian/prerm" "$here/debian/postrm" "$stage/DEBIAN/"
find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
mkdir -p "$out"
dpkg-deb --root-owner-group -Zxz --build "$stage" "$out/davit_${version}_$arch.deb"
