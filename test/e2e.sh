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

mesh e2e1
test/walkthrough.sh cluster1 cluster2 || fail 'the guide'
test/faults.sh e2e1 || fail 'the faults'
test/uninstall.sh cluster1 cluster2 || fail 'uninstall'
down e2e1 || fail 'lab down'

mesh e2e3 --nodes 3
STEPS=1-3 test/walkthrough.sh cluster1 cluster2 || fail 'the guide, three nodes'
STEPS=5-20 REQUESTS=100 test/walkthrough.sh cluster1 cluster2 || fail 'the guide, three nodes'
down e2e3 || fail 'lab down'
step 'end to end: all passed'
