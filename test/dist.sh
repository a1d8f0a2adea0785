#!/bin/bash
# Two builds of the release, from folders, times, umasks, time zones and locales that differ: the same bytes.
#
#   test/dist.sh [ARCH…]      (amd64 and arm64)
set -uo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 1
. test/lib.sh
version=$(cat VERSION)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# sources FOLDER: this tree, without what is built.
sources() { mkdir -p "$1" && git ls-files -z --cached --others --exclude-standard | xargs -0 ls -d 2>/dev/null | tar -cf - -T - | tar -xf - -C "$1"; }
sums() { (cd "$1/dist" && cat "carrick-$version-SHA256SUMS"); }

(umask 022; sources "$work/one") && (umask 077; sources "$work/quite/another") || fail 'two copies of the sources'
(cd "$work/one" && umask 022 && TZ=UTC LC_ALL=C tools/dist.sh "$version" "$@") || fail 'the first build'
(
  cd "$work/quite/another" && umask 077 && find . -type f -exec touch -d '2001-02-03 04:05:06' {} + &&
    TZ=Asia/Shanghai LC_ALL=C.UTF-8 tools/dist.sh "$version" "$@"
) || fail 'the second build'
sums "$work/one"
[ "$(sums "$work/one")" = "$(sums "$work/quite/another")" ] || fail "another hash: $(diff <(sums "$work/one") <(sums "$work/quite/another"))"
note "images/samples.tar holds this machine's $(curl --version | head -1 | cut -d' ' -f1,2) and busybox: the archive with it is the same only where these are"
step 'the release is reproducible'
