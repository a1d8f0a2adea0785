#!/bin/sh
# Builds genuine istioctl, pilot-discovery and pilot-agent from the modules that tools/istio pins: istio.sh FOLDER
# They and the template of Envoy's bootstrap end in FOLDER. Some minutes the first time.
set -eu
dir=$1
cd "$(dirname "$0")/istio"
sum=$(cat go.mod go.sum "../istio.sh" | sha256sum | cut -c1-16)
[ "$(cat "$dir/sum" 2>/dev/null)" != "$sum" ] || exit 0
mkdir -p "$dir"
go mod download istio.io/istio # or go list does not know its folder
version=$(cat "$(go list -m -f '{{.Dir}}' istio.io/istio)/VERSION")-dev
p=istio.io/istio/pkg/version
echo "building Istio $version"
go build -trimpath -ldflags "-s -w -X $p.buildVersion=$version -X $p.buildTag=$version -X $p.buildHub=docker.io/istio -X $p.buildStatus=Clean" \
  -o "$dir/" istio.io/istio/istioctl/cmd/istioctl istio.io/istio/pilot/cmd/pilot-discovery istio.io/istio/pilot/cmd/pilot-agent
install -m 644 "$(go list -m -f '{{.Dir}}' istio.io/istio)/tools/packaging/common/envoy_bootstrap.json" "$dir/envoy_bootstrap_tmpl.json"
echo "$version" >"$dir/version"
echo "$sum" >"$dir/sum"
