#!/bin/bash
# The end of the guide: removes the mesh from two clusters and proves that nothing of it is left.
#
#   KUBECONFIG=… test/uninstall.sh CONTEXT1 CONTEXT2
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
CARRICK=${CARRICK:-carrick}
carrick() { command "$CARRICK" "$@"; }
kube() { kubectl --context="$1" "${@:2}"; }
gone() { ! kube "$1" get ns "$2" >/dev/null 2>&1; }
step '22. Uninstall'
for c in "$@"; do
  run carrick uninstall --context="$c" -y --purge
  run kubectl --context="$c" delete ns istio-system
  until_true 90 "namespace istio-system is gone from $c" gone "$c" istio-system
  run carrick uninstall --context="$c" --verify
  left=$(kube "$c" get crd,clusterrole,clusterrolebinding,mutatingwebhookconfiguration,validatingwebhookconfiguration -o name | grep -iE 'istio|carrick')
  [ -z "$left" ] || fail "left in $c: $left"
  left=$(kube "$c" get cm -A -o name | grep istio-ca)
  [ -z "$left" ] || fail "left in $c: $left"
  kube "$c" get ns sample >/dev/null || fail 'the namespace sample has to stay'
  kube "$c" -n metallb-system get ipaddresspool first-pool >/dev/null || fail 'the pool has to stay'
done
