#!/bin/sh
# Installs the Debian packages that the build, the lab and the tests use, and those named as
# arguments, if any is missing. What is a service is not started.
set -eu
packages='gcc libc6-dev libseccomp-dev pkg-config iproute2 nftables iptables conntrack iputils-arping busybox-static curl openssl jq python3 python3-pip nghttp2-client procps'
packages="$packages $*"
missing=''
for p in $packages; do
  dpkg -s "$p" >/dev/null 2>&1 || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
command -v apt-get >/dev/null || { echo "needed, and not installed here:$missing" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "run as root, or install first: apt-get install -y$missing" >&2; exit 1; }
echo "installing Debian packages:$missing"
apt-get update -q >/dev/null
RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing </dev/null >/dev/null
