#!/bin/bash
# What breaks, and what does not: kills parts of a running mesh (after test/walkthrough.sh, in the
# lab) while pods call each other, and counts what was lost. A request is lost if it is not answered
# with 200 within 15 s; it is slow above 1 s.
#
#   KUBECONFIG=… test/faults.sh RUN_ID
#
# FAULTS picks some of: istiod gateway connection apiserver link secret
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
id=${1:?usage: faults.sh RUN_ID}
FAULTS=${FAULTS:-istiod gateway connection apiserver link secret wrongsecret}
C1=cluster1 C2=cluster2
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; "$top/bin/lab" --run-id "$id" wan restore >/dev/null 2>&1; rm -rf "$work"' EXIT
top=$(dirname "$here")
CARRICK=${CARRICK:-carrick}
lab() { "$top/bin/lab" --run-id "$id" "$@"; }
kube() { kubectl --context="$1" "${@:2}"; }
pod() { kube "$1" -n "$2" get pod -l "$3" --field-selector=status.phase=Running -o jsonpath='{.items[0].metadata.name}'; }
ready() { until_true 180 "$3 of namespace $2 in $1" kube "$1" -n "$2" rollout status --timeout=1s "$3"; }

# load SECONDS NAME URL CONTEXT: calls a URL from sleep in a cluster, one request after another, by two
# workers. A line per request in $work/NAME: start time, status, seconds.
load() {
  kube "$4" exec -n sample -c sleep "$(pod "$4" sample app=sleep)" -- sh -c '
    end=$(($(date +%s) + '"$1"'))
    worker() { while t=$(date +%s); [ $t -lt $end ]; do
      r=$(curl -s -o /dev/null --max-time 15 -w "%{http_code} %{time_total} %{errormsg}" '"$3"'); echo $t $r; done; }
    worker & worker; wait' >"$work/$2" 2>"$work/$2.err" &
}

# count NAME [AFTER]: requests, lost and slow, of those that began at AFTER or later.
count() { awk -v after="${2:-0}" '$1 >= after {n++; if ($2 != 200) lost++; else if ($3 > 1) slow++} END {printf "%d requests, %d lost, %d slow\n", n, lost, slow}' "$work/$1"; }
lost() { awk -v after="${2:-0}" '$1 >= after && $2 != 200 {lost++} END {print lost + 0}' "$work/$1"; }

HELLO=helloworld.sample:5000/hello LOCAL=local.sample:5000/hello

step 'A service that is only here'
kube "$C1" apply -n sample -f - <<EOF || fail 'the local service'
apiVersion: v1
kind: Service
metadata: {name: local, labels: {app: local}}
spec:
  ports: [{name: http, port: 5000}]
  selector: {app: local}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: local}
spec:
  selector: {matchLabels: {app: local}}
  template:
    metadata: {labels: {app: local}}
    spec:
      containers: [{name: app, image: docker.io/istio/examples-helloworld-v1, imagePullPolicy: IfNotPresent, ports: [{containerPort: 5000}]}]
EOF
ready "$C1" sample deploy/local
kube "$C1" -n istio-system rollout status deploy/istiod --timeout=60s >/dev/null || fail istiod

hello() { kube "$1" exec -n sample -c sleep "$(pod "$1" sample app=sleep)" -- sh -c 'for i in 1 2 3 4 5 6 7 8; do curl -s --max-time 5 '"$HELLO"'; done'; }
both() { local c out; for c in "$C1" "$C2"; do out=$(hello "$c"); [[ $out == *v1* && $out == *v2* ]] || return 1; done; }
local_ok() { kube "$C1" exec -n sample -c sleep "$(pod "$C1" sample app=sleep)" -- curl -sf --max-time 5 "$LOCAL" | grep -q Hello; }
until_true 60 'both versions answer' both
until_true 60 'the local service answers' local_ok

# during NAME SECONDS COMMAND…: the command, some seconds into a load on helloworld from both clusters and on
# the local service; then the counts, then proof that all heals.
during() {
  local name=$1 seconds=$2 c
  shift 2
  step "$name"
  for c in "$C1" "$C2"; do load "$seconds" "$name-$c" "$HELLO" "$c"; done
  load "$seconds" "$name-local" "$LOCAL" "$C1"
  for c in "$C1" "$C2"; do until_true 10 'the load has begun' test -s "$work/$name-$c"; done
  at=$(date +%s)
  "$@" || fail "$name"
  wait
  for c in "$C1" "$C2"; do
    echo "helloworld, from $c: $(count "$name-$c"); from 10 s after the fault: $(count "$name-$c" $((at + 10)))"
  done
  echo "local: $(count "$name-local")"
  [ "$(lost "$name-local")" -eq 0 ] || fail "$name: local traffic must not fail: $(grep -v ' 200 ' "$work/$name-local" | head -3)"
  for c in "$C1" "$C2"; do
    [ "$(lost "$name-$c" $((at + 10)))" -eq 0 ] || fail "$name, from $c: nothing may be lost from 10 s on: $(grep -v ' 200 ' "$work/$name-$c" | head -3)"
    has "$(count "$name-$c" $((at + 10)))" ' 0 slow$' || fail "$name, from $c: nothing may be slow from 10 s on: $(awk -v t=$((at + 10)) '$1 >= t && $3 > 1' "$work/$name-$c" | head -3)"
  done
  until_true 90 'both versions answer again, in both clusters' both
}

for f in $FAULTS; do
  case $f in
    istiod) during 'control plane killed' 20 kube "$C1" -n istio-system delete pod -l app=istiod --grace-period=0 --force ;;
    gateway) during 'east-west gateway of the peer killed' 30 kube "$C2" -n istio-system delete pod -l app=istio-eastwestgateway --grace-period=0 --force ;;
    connection) during 'control-plane connections cut' 20 kube "$C1" -n istio-system exec deploy/istiod -- pilot-discovery request GET '/debug/force_disconnect' ;;
    apiserver) during 'API server of the peer killed' 20 lab exec cluster2 pkill -9 -f kube-apiserver ;;
    link)
      cut_and_restore() { lab wan cut && until_true 30 '20 s of cut' test "$(date +%s)" -ge $((at + 0)) && read -rt 20 <> <(:); lab wan restore; }
      during 'link between the clusters cut for 20 s, restored' 40 cut_and_restore ;;
    secret)
      rotate() {
        local i
        for i in $(seq 1 20); do # each time another token, and the one before is void at once
          kube "$C2" -n istio-system delete secret istio-reader-service-account-istio-remote-secret-token >/dev/null || return 1
          "$CARRICK" create-remote-secret --context="$C2" --name="$C2" 2>/dev/null | kube "$C1" apply -f - >/dev/null || return 1
        done
      }
      during 'remote secret rotated 20 times' 30 rotate
      for c in "$C1" "$C2"; do [ "$(lost "remote secret rotated 20 times-$c")" -eq 0 ] || fail 'a rotated secret may lose nothing'; done ;;
    wrongsecret)
      step 'A wrong remote secret'
      good=$("$CARRICK" create-remote-secret --context="$C2" --name=cluster9) || fail 'the secret'
      sed 's/token: .*/token: not-a-token/' <<<"$good" | kube "$C1" apply -f - || fail apply
      shows() { "$CARRICK" remote-clusters --context="$C1" | tee "$work/rc" | grep cluster9 | grep -Eqv ' (synced|syncing) '; }
      until_true 15 'remote-clusters shows it' shows
      cat "$work/rc"
      until_true 10 'both versions answer' both
      kube "$C1" -n istio-system delete secret istio-remote-secret-cluster9 ;;
  esac
done
step 'All healed'
