#!/bin/bash
# gRPC and HTTP/2 over both clusters, on a running mesh (after test/walkthrough.sh, in the lab): calls
# through proxies, the built-in one and Envoy, and from a client without one.
#
#   KUBECONFIG=… test/grpc.sh RUN_ID
#
# ENGINES are the proxies to run beside the clients ("carrick envoy"); Envoy needs the image
# carrick-envoy in the clusters. PARTS picks some of: balance streams large http2 retries kill
# proxyless.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
id=${1:?usage: grpc.sh RUN_ID}
ENGINES=${ENGINES:-carrick envoy}
PARTS=${PARTS:-balance streams large http2 retries kill proxyless}
C1=cluster1 C2=cluster2 NS=sample
top=$(dirname "$here")
cd "$top" || exit 1
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT
kube() { kubectl --context="$1" -n "$NS" "${@:2}"; }
pod() { kube "$1" get pod -l "$2" --field-selector=status.phase=Running -o jsonpath='{.items[0].metadata.name}'; }
ready() { until_true 180 "$2 in $1" kube "$1" rollout status --timeout=1s "$2"; }
pass() { printf '%sPASS: %s%s\n' "$BOLD" "$*" "$RESET"; }
both_clusters() { local c; for c in "$C1" "$C2"; do kube "$c" "$@" || return 1; done; }
ECHO=grpc-echo:7070

# client ARGS…: the client of the moment, in cluster1.
client() { kube "$C1" exec "deploy/$CLIENT" -c client -- grpcecho "$@"; }
lines() { grep -Ec -- "$2" <<<"$1"; }
# answered N TARGET: whether N calls over one connection all come back, from both versions.
answered() {
  local out
  out=$(client call -n "$1" "$2")
  [ "$(lines "$out" '^OK ')" -eq "$1" ] && has "$out" '^OK v1 ' && has "$out" '^OK v2 ' || { echo "$out" | sort | uniq -c; return 1; }
}

balance() {
  step "$WHO: unary calls over one connection, balanced by the request"
  local out v1 v2
  out=$(client call -n 100 "$ECHO")
  v1=$(lines "$out" '^OK v1 ') v2=$(lines "$out" '^OK v2 ')
  [ $((v1 + v2)) -eq 100 ] && [ "$v1" -ge 30 ] && [ "$v2" -ge 30 ] || { echo "$out" | tail -5; fail "100 calls: v1 $v1, v2 $v2"; }
  # A status of the application passes as it is, from either cluster.
  out=$(client call -n 10 -code 9 "$ECHO")
  [ "$(lines "$out" '^FAILED_PRECONDITION v[12] .* as asked$')" -eq 10 ] || { echo "$out"; fail 'a status passes'; }
  # The caller's deadline arrives, and holds.
  expect 'the deadline arrives' "$(client call -deadline 7s "$ECHO")" '^OK v[12] [^ ]+ - (6[0-9]{3}|7000) '
  out=$(client call -n 4 -deadline 300ms -H delay=20s "$ECHO")
  [ "$(lines "$out" '^DEADLINE_EXCEEDED .* (29[0-9]|[3-9][0-9]{2}) ')" -eq 4 ] || { echo "$out"; fail 'the deadline holds'; }
  pass "$WHO: balance: v1 $v1, v2 $v2 of 100; statuses and deadlines pass"
}

streams() {
  step "$WHO: streams both ways"
  local out i
  : >"$work/streams"
  for i in 1 2 3 4 5 6 7 8; do client stream -n 20 -size 1000 "$ECHO" >>"$work/streams"; done
  out=$(cat "$work/streams")
  # "begun" names who sent the header, the end who sent the trailer.
  [ "$(lines "$out" '^OK v[12] .* 20000 ')" -eq 8 ] || { echo "$out"; fail 'eight streams of 20 messages'; }
  has "$out" '^OK v1 ' && has "$out" '^OK v2 ' || { echo "$out"; fail 'streams to both versions'; }
  out=$(client stream -n 3 -code 13 "$ECHO")
  expect 'a status after messages' "$out" '^INTERNAL v[12] .* as asked$'
  pass "$WHO: streams: 8 of 20 messages, to both versions; a status in the trailers"
}

large() {
  step "$WHO: messages of 4 MiB both ways"
  local out
  out=$(client call -n 6 -size 4194304 "$ECHO")
  [ "$(lines "$out" '^OK v[12] .* 4194304 ')" -eq 6 ] && has "$out" '^OK v1 ' && has "$out" '^OK v2 ' || { echo "$out"; fail 'six calls of 4 MiB'; }
  out=$(client stream -n 4 -size 4194304 "$ECHO")
  expect 'a stream of 4 MiB' "$out" '^OK v[12] .* 16777216 '
  pass "$WHO: large: six calls and a stream, 4 MiB each way"
}

# curls ARGS…: sleep's curl, in cluster1.
curls() { kube "$C1" exec deploy/sleep -c sleep -- curl -sS --max-time 10 "$@"; }

http2() {
  step 'HTTP/2 without TLS'
  local out='' i
  for i in 1 2 3 4 5 6 7 8; do out+=$(curls --http2-prior-knowledge -d "$i" -w ' %{http_version} %{http_code}' grpc-echo:8080/)$'\n'; done
  out=$(tr '\n' ' ' <<<"$out" | sed 's/version:/\n&/g')
  [ "$(lines "$out" 'version: v[12],.* protocol: HTTP/2.0, received: 1 +2 200')" -eq 8 ] && has "$out" 'version: v1' && has "$out" 'version: v2' ||
    { echo "$out"; fail 'prior knowledge, on the port http2'; }
  # The port http2 takes HTTP/1.1 too, and the application gets HTTP/2 all the same.
  expect 'HTTP/1.1 to the port http2' "$(curls --http1.1 -w '%{http_version}' grpc-echo:8080/)" 'protocol: HTTP/2.0'
  # The port http is HTTP/1.1 to the application, whatever the client speaks.
  expect 'HTTP/2 to the port http' "$(curls --http2-prior-knowledge grpc-echo:8081/)" 'protocol: HTTP/1.1'
  pass 'http2: prior knowledge, to both versions'
}

retries() { # a VirtualService of its own cluster: the source's proxy reads it
  step "$WHO: retries of UNAVAILABLE"
  local out
  virtual_service() { # ATTEMPTS
    kube "$C1" apply -f - >/dev/null <<YAML
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: grpc-echo}
spec:
  hosts: [grpc-echo]
  http:
  - match: [{port: 7070}]
    route: [{destination: {host: grpc-echo, port: {number: 7070}}}]
    retries: {attempts: $1, perTryTimeout: 5s, retryOn: unavailable}
  - route: [{destination: {host: grpc-echo}}]
YAML
  }
  failing() { client call -n 4 -H fail-attempts=1 "$ECHO"; }
  none() { [ "$(lines "$(failing)" '^UNAVAILABLE v[12] .* attempt 1, as asked$')" -eq 4 ]; }
  all() { [ "$(lines "$(failing)" '^OK v[12] ')" -eq 4 ]; }
  virtual_service 0
  until_true 20 'without retries the first answer comes' none
  virtual_service 2
  until_true 20 'with retries the second' all
  out=$(client call -H fail-attempts=9 "$ECHO")
  expect 'the third attempt is the last' "$out" '^UNAVAILABLE v[12] .* attempt 3, as asked$'
  kube "$C1" delete virtualservice grpc-echo >/dev/null
  pass "$WHO: retries: as the VirtualService says"
}

# stream_to VERSION FILE: a stream without end to an instance of that version; sets stream to its process.
stream_to() {
  local try
  for try in 1 2 3 4 5 6 7 8 9 10; do
    client stream -n 0 -pause 100ms -deadline 60s "$ECHO" >"$2" 2>&1 &
    stream=$!
    until_true 20 'a stream begins' test -s "$2"
    grep -q "^begun $1 " "$2" && return
    kill $stream 2>/dev/null
    wait $stream 2>/dev/null
  done
  fail "no stream to $1 in $try attempts"
}

# kill: a server dies under a stream; the client is told within seconds, and new calls go elsewhere.
kill_server() {
  step "$WHO: a server dies under a stream"
  local v c stream host began
  for v in v1 v2; do
    c=$C1; [ $v = v1 ] || c=$C2
    stream_to $v "$work/stream.$v"
    host=$(awk '/^begun/ {print $3}' "$work/stream.$v")
    kube "$c" delete pod "$host" --grace-period=0 --force --wait=false >/dev/null 2>&1
    began=$(date +%s)
    ended() { ! kill -0 $stream 2>/dev/null; }
    until_true 25 "the stream to $host ends" ended
    note "$(tail -1 "$work/stream.$v") ($(($(date +%s) - began)) s after the kill)"
    expect "the end of the stream to $host" "$(cat "$work/stream.$v")" "^$ENDS $v $host "
    [ "$(lines "$(client call -n 10 "$ECHO")" '^OK ')" -ge 9 ] || fail "calls while $v is away"
    ready "$c" "deploy/grpc-echo-$v"
    until_true 60 'both versions answer' answered 8 "$ECHO"
  done
  pass "$WHO: kill: both streams ended, calls went on"
}

proxyless() {
  step 'A client without a proxy'
  local out v1 v2 target=xds:///grpc-echo.$NS.svc.cluster.local:7070
  WHO=proxyless CLIENT=grpc-client-proxyless
  [ "$(kube "$C1" get pod -l app=$CLIENT -o jsonpath='{.items[0].spec.initContainers[*].name}')" = istio-proxy ] || fail 'the pod has an agent, and nothing that redirects'
  # gRPC sets up TLS only where a rule says so, and its ALPN is not the mesh's: so the servers take nothing else.
  for c in "$C1" "$C2"; do
    kube "$c" apply -f - >/dev/null <<'YAML'
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: grpc-echo}
spec:
  host: grpc-echo
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}
---
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: grpc-echo}
spec:
  selector: {matchLabels: {app: grpc-echo}}
  mtls: {mode: STRICT}
YAML
  done
  until_true 60 'both versions answer' answered 8 "$target"
  out=$(client call -n 100 "$target")
  v1=$(lines "$out" '^OK v1 [^ ]+ mTLS ') v2=$(lines "$out" '^OK v2 [^ ]+ mTLS ')
  [ $((v1 + v2)) -eq 100 ] && [ "$v1" -ge 30 ] && [ "$v2" -ge 30 ] || { echo "$out" | tail -5; fail "100 calls by mutual TLS: v1 $v1, v2 $v2"; }
  ECHO=$target
  streams
  both_clusters delete destinationrule/grpc-echo peerauthentication/grpc-echo >/dev/null
  pass "proxyless: v1 $v1, v2 $v2 of 100, by mutual TLS from gRPC itself"
}

step 'grpc-echo: v1 here and v2 there'
both_clusters apply -f samples/grpc/grpc-echo.yaml -l service=grpc-echo || fail 'the service'
kube "$C1" apply -f samples/grpc/grpc-echo.yaml -l version=v1 || fail 'v1'
kube "$C2" apply -f samples/grpc/grpc-echo.yaml -l version=v2 || fail 'v2'
kube "$C1" apply -f samples/grpc/grpc-client.yaml || fail 'the clients'
ready "$C1" deploy/grpc-echo-v1
ready "$C2" deploy/grpc-echo-v2
expect 'the probe is asked through the agent' "$(kube "$C1" get pod -l app=grpc-echo -o json | jq -c '.items[0].spec | [.containers[], .initContainers[]] | map([.readinessProbe.httpGet.path, (.env // [] | map(select(.name == "ISTIO_KUBE_APP_PROBERS").value)[])])')" '/app-health/grpc-echo/readyz.*grpc'
for engine in $ENGINES; do
  WHO=$engine CLIENT=grpc-client
  ENDS=UNAVAILABLE
  [ "$engine" = carrick ] || ENDS='(UNAVAILABLE|INTERNAL)' # Envoy resets a stream that cannot go on, which gRPC calls INTERNAL
  kube "$C1" patch deploy grpc-client --type merge -p "{\"spec\":{\"template\":{\"metadata\":{\"annotations\":{\"carrick.dev/proxy\":\"$engine\"}}}}}" >/dev/null
  ready "$C1" deploy/grpc-client
  until_true 60 'both versions answer' answered 8 "$ECHO"
  for p in $PARTS; do
    case $p in
      http2 | proxyless) ;; # once, below
      kill) kill_server ;;
      *) $p ;;
    esac
  done
done
case " $PARTS " in *' http2 '*) http2 ;; esac
case " $PARTS " in *' proxyless '*) ready "$C1" deploy/grpc-client-proxyless; proxyless ;; esac
both_clusters delete -f samples/grpc/grpc-echo.yaml --ignore-not-found --wait=false >/dev/null
kube "$C1" delete -f samples/grpc/grpc-client.yaml --ignore-not-found --wait=false >/dev/null
step 'grpc: all passed'
