#!/bin/bash
# What breaks, and what does not: kills parts of a running mesh (after test/walkthrough.sh, in the
# lab) while pods call each other, and counts what was lost. A request is lost if it is not answered
# with 200, to the end, within 15 s; it is slow above 1 s.
#
#   KUBECONFIG=… test/faults.sh RUN_ID
#
# FAULTS picks some of: istiod gateway connection apiserver link secret wrongsecret
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
id=${1:?usage: faults.sh RUN_ID}
FAULTS=${FAULTS:-istiod gateway connection apiserver link secret wrongsecret}
C1=cluster1 C2=cluster2
work=$(mktemp -d)
trap '"$top/bin/lab" --run-id "$id" wan restore >/dev/null 2>&1; rm -rf "$work"' EXIT
top=$(dirname "$here")
CARRICK=${CARRICK:-carrick}
lab() { "$top/bin/lab" --run-id "$id" "$@"; }
kube() { kubectl --context="$1" "${@:2}"; }
ready() { until_true 180 "$3 of namespace $2 in $1" kube "$1" -n "$2" rollout status --timeout=1s "$3"; }

# in_sleep CONTEXT COMMAND…: runs it in sleep of a cluster.
in_sleep() { kube "$1" exec -n sample -c sleep deploy/sleep -- "${@:2}"; }
# load SECONDS NAME URL CONTEXT: calls a URL from there (see CALLS); loaded NAME CONTEXT waits until it has ended,
# and puts what it counted into $work/NAME.
load() {
  in_sleep "$4" sh -c "$CALLS" sh "/tmp/$2" "$3" "$1" || fail "the load $2"
  until_true 20 "the load $2 has begun" in_sleep "$4" test -s "/tmp/$2"
}
loaded() {
  until_true 120 "the load $1 has ended" in_sleep "$2" test -e "/tmp/$1.end"
  in_sleep "$2" cat "/tmp/$1" >"$work/$1" || fail "what the load $1 counted"
}

# now: seconds since the machine started, the clock of all the lab.
now() { local t; read -r t _ </proc/uptime; echo "$t"; }
# of KIND NAME [AFTER]: the lost or slow requests, of those that began AFTER seconds after the fault or later, and when.
of() {
  awk -v kind="$1" -v at="$at" -v after="${3:--999}" '
    {began = $1 - $4 - at; is = $2 != 200 || $3 != 0 ? "lost" : $4 > 1 ? "slow" : ""}
    is == kind && began >= after {
      message = ""; for (i = 5; i <= NF; i++) message = message " " $i
      printf "%s: at %+.2f s, status %s, curl %s, after %.2f s%s\n", kind, began, $2, $3, $4, message}' "$work/$2"
}
any() { [ -n "$(of "$@")" ]; }
# count NAME [AFTER]: how many.
count() {
  awk -v at="$at" -v after="${2:--999}" '$1 - $4 - at >= after {n++; if ($2 != 200 || $3 != 0) lost++; else if ($4 > 1) slow++}
    END {printf "%d requests, %d lost, %d slow\n", n, lost, slow}' "$work/$1"
}

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

hello() { in_sleep "$1" sh -c 'for i in 1 2 3 4 5 6 7 8; do curl -s --max-time 5 '"$HELLO"'; done'; }
both() { local c out; for c in "$C1" "$C2"; do out=$(hello "$c"); [[ $out == *v1* && $out == *v2* ]] || return 1; done; }
local_ok() { in_sleep "$C1" curl -sf --max-time 5 "$LOCAL" | grep -q Hello; }
until_true 60 'both versions answer' both
until_true 60 'the local service answers' local_ok

# during NAME SECONDS COMMAND…: the command, some seconds into a load on helloworld from both clusters and on
# the local service; then the counts, then proof that all heals.
during() {
  local seconds=$2 c
  name=$1
  shift 2
  step "$name"
  for c in "$C1" "$C2"; do load "$seconds" "$name-$c" "$HELLO" "$c"; done
  load "$seconds" "$name-local" "$LOCAL" "$C1"
  at=$(now)
  "$@" || fail "$name"
  for c in "$C1" "$C2"; do loaded "$name-$c" "$c"; done
  loaded "$name-local" "$C1"
  for c in "$C1" "$C2"; do
    echo "helloworld, from $c: $(count "$name-$c"); from 10 s after the fault: $(count "$name-$c" 10)"
    of lost "$name-$c"; of slow "$name-$c"
  done
  echo "local: $(count "$name-local")"
  of lost "$name-local"; of slow "$name-local"
  ! any lost "$name-local" || fail "$name: local traffic must not fail"
  for c in "$C1" "$C2"; do
    ! any lost "$name-$c" 10 || fail "$name, from $c: nothing may be lost from 10 s on"
    # What a busy machine makes slow, it makes slow on the local service, too.
    ! any slow "$name-$c" 10 || any slow "$name-local" 10 || fail "$name, from $c: nothing may be slow from 10 s on"
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
      cut_and_restore() { lab wan cut && { read -rt 20 <> <(:); lab wan restore; }; }
      during 'link between the clusters cut for 20 s, restored' 40 cut_and_restore
      # A GET that was on the way when the link was cut has a live path once its connection is given up.
      for c in "$C1" "$C2"; do ! any lost "$name-$c" || fail "from $c: a request with a live path was lost"; done ;;
    secret)
      rotate() {
        local i
        for i in $(seq 1 20); do # each time another token, and the one before is void at once
          kube "$C2" -n istio-system delete secret istio-reader-service-account-istio-remote-secret-token >/dev/null || return 1
          "$CARRICK" create-remote-secret --context="$C2" --name="$C2" 2>/dev/null | kube "$C1" apply -f - >/dev/null || return 1
        done
      }
      during 'remote secret rotated 20 times' 30 rotate
      for c in "$C1" "$C2"; do ! any lost "remote secret rotated 20 times-$c" || fail 'a rotated secret may lose nothing'; done ;;
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
