#!/bin/bash
# make e2e: the guide in the lab, twice over: to the letter, from an unpacked release, with some scenarios,
# the faults and the uninstallation; then on three nodes a cluster, with Envoy and classic sidecars in places.
set -uo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 1
. test/lib.sh
export CURL1 CURL2
logs=${LOGS:-$top/dist/e2e}
mkdir -p "$logs"

# mesh ID LAB-ARGS…: a lab with the guide's mesh on it.
mesh() {
  local id=$1
  shift
  step "lab $id: $*"
  bin/lab --run-id "$id" up "$@" || fail 'the lab did not come up'
  KUBECONFIG=$(bin/lab --run-id "$id" kubeconfig)
  export KUBECONFIG
  bin/lab --run-id "$id" image load "$images"/*.tar || fail 'the images'
  CURL1="$top/bin/lab --run-id $id exec client1 curl" CURL2="$top/bin/lab --run-id $id exec client2 curl"
}
down() { bin/lab --run-id "$1" down; }
trap 'for id in e2e1 e2e3; do bin/lab --run-id $id down >/dev/null 2>&1; done' EXIT
ln -sf "$(bin/lab build)/bin/kubectl" bin/kubectl
export PATH=$top/bin:$PATH

# loaded STEPS: those steps, while the product page is called from the LAN without a pause; nothing may be lost.
loaded() {
  local address out=$logs/load
  address=$(kubectl --context=cluster1 -n istio-system get service istio-ingressgateway -o jsonpath='{.status.loadBalancer.ingress[0].ip}')
  rm -f "$out.stop"
  : >"$out"
  (while [ ! -e "$out.stop" ]; do $CURL1 -s -o /dev/null --max-time 15 -w '%{http_code} %{time_total} %{errormsg}\n' "http://$address/productpage" >>"$out"; done) &
  (STEPS=$1 guide) || { touch "$out.stop"; exit 1; }
  touch "$out.stop"
  wait
  step "bookinfo through steps $1"
  awk '{n++; if ($1 != 200) lost++; else if ($2 > 1) slow++} END {printf "%d requests, %d lost, %d slow\n", n, lost, slow}' "$out"
  if grep -qv '^200 ' "$out"; then fail "lost: $(grep -v '^200 ' "$out" | head -5)"; fi
}

# guide: the steps of STEPS, typed in the folder that $guide stands in.
guide() { "$guide" cluster1 cluster2 || fail "the guide, steps $STEPS"; }

step 'The release archive'
version=$(cat VERSION) arch=$(go env GOHOSTARCH)
tools/dist.sh "$version" "$arch" || fail 'the release archive'
rm -rf "$logs/release" && mkdir "$logs/release" && tar -xzf "dist/carrick-$version-linux-$arch.tar.gz" -C "$logs/release" || fail 'unpacking it'
release=$logs/release/carrick-$version-linux-$arch
guide=$release/test/walkthrough.sh images=$release/images
PATH=$release/bin:$PATH

mesh e2e1
# What works here works without internet: nothing in the lab has a way out of it.
[ -z "$(bin/lab --run-id e2e1 exec router ip route show default)" ] || fail 'the lab reaches beyond itself'
export PROFILE2=demo CA=make
STEPS=1-4 guide
loaded 5-13
STEPS=14-20 guide
SCENARIOS='raw retries hairpin headless first optouts strict' test/scenarios.sh e2e1 || fail 'the scenarios'
ENGINES=carrick PARTS='balance streams large retries http2 proxyless' test/grpc.sh e2e1 || fail 'gRPC'
test/faults.sh e2e1 || fail 'the faults'
STEPS=21-22 guide
down e2e1 || fail 'lab down'

# Three nodes a cluster, bookinfo with sidecars, classic ones; Envoy in every role of cluster2.
guide=test/walkthrough.sh images=dist/images
export PROFILE2='' CA=carrick LB=manifest
mesh e2e3 --nodes 3
export INSTALL_ARGS='--set values.global.proxy.nativeSidecar=false' INSTALL_ARGS2='--set values.global.proxy.engine=envoy --set values.global.proxy.image=carrick-envoy'
kubectl --context=cluster1 label namespace default istio-injection=enabled
STEPS=1-4 guide
loaded 5-13
STEPS=14-20 guide
down e2e3 || fail 'lab down'
step 'end to end: all passed'
