#!/bin/bash
# make e2e: the guide in the lab, twice over (one node a cluster with the built-in proxy; three with
# Envoy and classic sidecars in places), the faults, and the end of it all: uninstall.
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
  bin/lab --run-id "$id" image load dist/images/*.tar || fail 'the images'
  CURL1="$top/bin/lab --run-id $id exec client1 curl" CURL2="$top/bin/lab --run-id $id exec client2 curl"
}
down() { bin/lab --run-id "$1" down; }
trap 'for id in e2e1 e2e3; do bin/lab --run-id $id down >/dev/null 2>&1; done' EXIT
ln -sf "$(bin/lab build)/bin/kube" bin/kubectl
export PATH=$top/bin:$PATH

# loaded STEPS: those steps, while the product page is called from the LAN without a pause; nothing may be lost.
loaded() {
  local address out=$logs/load
  address=$(kubectl --context=cluster1 -n istio-system get service istio-ingressgateway -o jsonpath='{.status.loadBalancer.ingress[0].ip}')
  rm -f "$out.stop"
  : >"$out"
  (while [ ! -e "$out.stop" ]; do $CURL1 -s -o /dev/null --max-time 15 -w '%{http_code} %{time_total}\n' "http://$address/productpage" >>"$out"; done) &
  STEPS=$1 test/walkthrough.sh cluster1 cluster2 || { touch "$out.stop"; fail "the guide, steps $1"; }
  touch "$out.stop"
  wait
  step "bookinfo through steps $1"
  awk '{n++; if ($1 != 200) lost++; else if ($2 > 1) slow++} END {printf "%d requests, %d lost, %d slow\n", n, lost, slow}' "$out"
  if grep -qv '^200 ' "$out"; then fail "lost: $(grep -v '^200 ' "$out" | head -5)"; fi
}

mesh e2e1
STEPS=1-4 test/walkthrough.sh cluster1 cluster2 || fail 'the guide'
loaded 5-13
STEPS=14-20 test/walkthrough.sh cluster1 cluster2 || fail 'the guide'
test/faults.sh e2e1 || fail 'the faults'
test/uninstall.sh cluster1 cluster2 || fail 'uninstall'
down e2e1 || fail 'lab down'

# Three nodes a cluster, bookinfo with sidecars, classic ones; Envoy in every role of cluster2.
mesh e2e3 --nodes 3
export INSTALL_ARGS='--set values.global.proxy.nativeSidecar=false' INSTALL_ARGS2='--set values.global.proxy.engine=envoy --set values.global.proxy.image=carrick-envoy'
kubectl --context=cluster1 label namespace default istio-injection=enabled
STEPS=1-4 test/walkthrough.sh cluster1 cluster2 || fail 'the guide, three nodes'
loaded 5-13
STEPS=14-20 test/walkthrough.sh cluster1 cluster2 || fail 'the guide, three nodes'
down e2e3 || fail 'lab down'
step 'end to end: all passed'
