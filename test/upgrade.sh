#!/bin/bash
# A mesh of the previous build is upgraded while requests run, taken back, and then moved to a second
# control plane of this build beside the first. Two clusters without a mesh, images loaded (see
# test/all.sh):
#
#   KUBECONFIG=… test/upgrade.sh CONTEXT1 CONTEXT2
#
# Environment:
#   PREVIOUS         folder of the previous build: its sources, built (bin, dist/images) as version 0.0.9
#   LATER            a carrick of this source that calls itself 0.4.0
#   PARTS            upgrade (with rollback) and revisions (both)
#   CURL1            a curl on a host that reaches the load-balancer addresses of the first cluster
# All requests count: one that is not answered with 200 within 15 s is lost.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$here")
. "$here/lib.sh"
C1=${1:?usage: upgrade.sh CONTEXT1 CONTEXT2} C2=${2:?usage: upgrade.sh CONTEXT1 CONTEXT2}
PREVIOUS=${PREVIOUS:?the folder of the previous build} LATER=${LATER:?a carrick of version 0.4.0}
CURL1=${CURL1:-curl}
PARTS=${PARTS:-upgrade revisions}
old=0.0.9 new=$(cat "$top/VERSION")
work=$(mktemp -d)
trap 'touch "$work/stop"; kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT
cd "$top" || exit 1
carrick() { command carrick "$@"; }
kube() { kubectl --context="$1" "${@:2}"; }
ready() { until_true 180 "$3 of namespace $2 in $1" kube "$1" -n "$2" rollout status --timeout=1s "$3"; }

step "A mesh of version $old"
for steps in 1-3 6-15; do # bookinfo has no part in it
  STEPS=$steps CARRICK=$PREVIOUS/bin/carrick "$PREVIOUS/test/walkthrough.sh" "$C1" "$C2" || fail 'the guide, by the previous build'
done
for c in "$C1" "$C2"; do kube "$c" apply -f test/testdata/upgrade.yaml || fail 'the callers'; done
for c in "$C1" "$C2"; do ready "$c" calls deploy/sleep; done
ingress=$(kube "$C1" -n istio-system get svc istio-ingressgateway -o jsonpath='{.status.loadBalancer.ingress[0].ip}')

# calls CONTEXT: calls helloworld, both clusters' pods in turn, until told to stop; a line per request.
calls() {
  kube "$1" -n calls exec deploy/sleep -c sleep -- sh -c '
    rm -f /tmp/stop; end=$(($(date +%s) + 1500))
    while [ ! -e /tmp/stop ] && t=$(date +%s) && [ $t -lt $end ]; do
      echo $t $(curl -s -o /dev/null --max-time 15 -w "%{http_code} %{time_total} %header{server}" helloworld.sample:5000/hello); done' >"$work/calls-$1" 2>"$work/calls-$1.err"
}
# ingress_calls: the same from the LAN through the ingress gateway.
ingress_calls() {
  while [ ! -e "$work/stop" ]; do echo "$(date +%s) $($CURL1 -s -o /dev/null --max-time 15 -w '%{http_code} %{time_total}' "http://$ingress/hello")"; done >"$work/calls-ingress"
}
answers() { kube "$1" -n calls exec deploy/sleep -c sleep -- sh -c 'i=0; while [ $i -lt 12 ]; do curl -s --max-time 15 helloworld.sample:5000/hello; i=$((i+1)); done'; }
both() { local out; out=$(answers "$1"); has "$out" 'version: v1' && has "$out" 'version: v2'; }
begin() {
  rm -f "$work/stop" "$work"/calls-*
  calls "$C1" & calls "$C2" & ingress_calls &
  for x in "$C1" "$C2" ingress; do until_true 20 "requests of $x" test -s "$work/calls-$x"; done
}
# end WHAT: stops the calls; none may be lost.
end() {
  touch "$work/stop"
  for c in "$C1" "$C2"; do kube "$c" -n calls exec deploy/sleep -c sleep -- touch /tmp/stop || fail "the calls of $c ended early"; done
  wait
  local x lost=0 line
  for x in "$C1" "$C2" ingress; do
    line=$(awk '{n++; if ($2 != 200) lost++; else if ($3 > 1) slow++} END {printf "%d requests, %d lost, %d slow", n, lost, slow}' "$work/calls-$x")
    echo "$1, from $x: $line"
    grep -v '^[0-9]* 200 ' "$work/calls-$x" | head -5
    has "$line" ' 0 lost' || lost=1
  done
  [ $lost -eq 0 ] || fail "$1: requests were lost"
  [ -z "${MEASURED:-}" ] || echo "$1: $(cat "$work"/calls-* | grep -c '^[0-9]* ') requests, none lost" >>"$MEASURED"
}
image() { kube "$1" -n "${4:-istio-system}" get "$2" -o jsonpath="{$3}"; }
# runs CONTEXT VERSION: control plane, load balancer and gateways are of a version, the gateways' proxies too.
runs() {
  local d
  expect "istiod in $1" "$(image "$1" deploy/istiod '.spec.template.spec.containers[0].image')" ":$2\$"
  expect "the load balancer in $1" "$(image "$1" deploy/controller '.spec.template.spec.containers[0].image' metallb-system)" ":$2\$"
  for d in istio-ingressgateway istio-eastwestgateway; do
    expect "pods of $d in $1" "$(kube "$1" -n istio-system get pod -l "istio=${d#istio-}" --field-selector=status.phase=Running -o jsonpath='{.items[-1:].spec.containers[0].image}')" ":$2\$"
  done
}
# kept CONTEXT: what the user had said and edited.
kept() {
  expect "the hand edit in $1" "$(kube "$1" -n istio-system get cm istio -o jsonpath='{.data.mesh}')" 'accessLogFile: /dev/stdout'
  expect "the IstioOperator in $1" "$(kube "$1" -n istio-system get cm installed-state -o jsonpath='{.data.operator}')" 'meshID: mesh1'
  expect "the gateway's address in $1" "$(kube "$1" -n istio-system get svc istio-eastwestgateway -o jsonpath='{.status.loadBalancer.ingress[0].ip}')" '^10\.'
}

if has "$PARTS" upgrade; then
step 'An upgrade that leaves versions out is refused'
out=$("$LATER" upgrade --context="$C1" -y 2>&1) && fail '0.4.0 upgrades 0.0.9'
echo "$out"
expect 'the refusal' "$out" 'go by way of 0\.1, then 0\.2, then 0\.3'

step "Upgrade from $old to $new, both clusters, while requests run"
begin
carrick upgrade --context="$C1" --context="$C2" -y 2>&1 | tee "$work/upgrade"
[ "${PIPESTATUS[0]}" -eq 0 ] || fail 'upgrade'
expect 'upgrade' "$(cat "$work/upgrade")" "version: +$old becomes $new"
expect 'upgrade, of old sidecars' "$(cat "$work/upgrade")" "sample/helloworld-v1.*\($old\)"
for c in "$C1" "$C2"; do runs "$c" "$new"; kept "$c"; until_true 30 "both versions from $c" both "$c"; done
end "upgrade $old to $new"

step "Back to $old, while requests run"
begin
carrick upgrade --context="$C1" --context="$C2" -y --rollback || fail 'rollback'
for c in "$C1" "$C2"; do runs "$c" "$old"; kept "$c"; until_true 30 "both versions from $c" both "$c"; done
end "rollback to $old"
fi
has "$PARTS" revisions || exit 0

step "Revision canary of $new beside $old, while requests run"
begin
for c in "$C1" "$C2"; do
  n=network1; [ "$c" = "$C1" ] || n=network2
  sed "s/CLUSTER/$c/; s/NETWORK/$n/" test/testdata/operator.yaml >"$work/$c.yaml"
  run carrick install --context="$c" --revision canary -y -f "$work/$c.yaml"
  samples/multicluster/gen-eastwest-gateway.sh --mesh mesh1 --cluster "$c" --network "$n" --revision canary |
    carrick install --context="$c" -y -f - || fail 'the east-west gateway'
  run carrick tag set prod --revision canary --context="$c"
  run kubectl --context="$c" label namespace sample istio-injection- istio.io/rev=prod
  run carrick tag list --context="$c"
  kube "$c" -n sample rollout restart deploy
done
ready "$C1" sample deploy/helloworld-v1
ready "$C2" sample deploy/helloworld-v2
for c in "$C1" "$C2"; do
  ready "$c" sample deploy/sleep
  pods=$(kube "$c" -n sample get pod -l app=helloworld --field-selector=status.phase=Running -o jsonpath='{range .items[*]}{.metadata.annotations.istio\.io/rev} {.spec.initContainers[*].image} {.spec.containers[*].image}{"\n"}{end}')
  expect "the pods of sample in $c" "$pods" "^canary .*carrick:$new"
  expect "istiod in $c" "$(image "$c" deploy/istiod '.spec.template.spec.containers[0].image')" ":$old\$"
  status=$(carrick proxy-status --context="$c")
  echo "$status"
  expect 'proxy-status' "$status" '^helloworld.*istiod-canary-'
  expect 'proxy-status' "$status" '^sleep-.*\.calls .* istiod-[0-9a-f]+-'
  expect 'proxy-status' "$status" '^istio-eastwestgateway.*istiod-canary-'
  until_true 30 "both versions from $c" both "$c"
done
end "workloads and gateways to revision canary"

step 'The first revision goes'
for c in "$C1" "$C2"; do
  kube "$c" label namespace calls istio-injection- istio.io/rev=prod
  kube "$c" -n calls rollout restart deploy
  ready "$c" calls deploy/sleep
done
begin
for c in "$C1" "$C2"; do run carrick uninstall --context="$c" --revision default -y; done
for c in "$C1" "$C2"; do
  kube "$c" -n istio-system get deploy istiod >/dev/null 2>&1 && fail 'istiod is still there'
  kube "$c" -n istio-system get deploy istiod-canary istio-ingressgateway istio-eastwestgateway || fail 'what is canary'"'"'s has to stay'
  kube "$c" -n sample rollout restart deploy
done
ready "$C1" sample deploy/helloworld-v1
ready "$C2" sample deploy/helloworld-v2
for c in "$C1" "$C2"; do until_true 30 "both versions from $c" both "$c"; done
end "uninstall of revision default"
step 'upgrade: all passed'
