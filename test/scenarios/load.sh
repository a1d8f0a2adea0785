# Scenarios under load: what comes, goes and changes loses nothing. Sourced by test/scenarios.sh.

# from PLACE COMMAND…: runs it in sleep of a cluster, or on a plain host of the LAN.
from() {
  case $1 in
    client*) lab exec "$@" ;;
    *) kube "$1" exec -n sample deploy/sleep -c sleep -- "${@:2}" ;;
  esac
}

# load NAME PLACE URL: calls a URL from there until unload (three minutes at most); see CALLS.
load() {
  from "$2" sh -c "$CALLS" sh "/tmp/load-$id-$1" "$3" 180 || fail "the load $1"
  until_true 20 "the load $1 has begun" from "$2" test -s "/tmp/load-$id-$1"
}

# unload NAME PLACE: ends it and fails if anything was lost; the counts are in $counts.
unload() {
  local file=/tmp/load-$id-$1 lost
  from "$2" touch "$file.stop" || fail "ending the load $1"
  until_true 40 "the load $1 has ended" from "$2" test -e "$file.end"
  from "$2" cat "$file" >"$work/$1" && from "$2" rm "$file" "$file.stop" "$file.end" || fail "what the load $1 counted"
  counts=$(awk '{n++; if ($2 != 200 || $3 != 0) lost++; else if ($4 > 1) slow++; if ($4 > most) most = $4} END {printf "%d requests, %d lost, %d slow (at most %.1f s)", n, lost, slow, most}' "$work/$1")
  note "$1: $counts"
  lost=$(awk '$2 != 200 || $3 != 0' "$work/$1")
  [ -z "$lost" ] || fail "$1: $counts; $(head -3 <<<"$lost" | paste -sd';')"
}

rollout() { # CLUSTER NAMESPACE OBJECT: restarts it and waits
  kube "$1" -n "$2" rollout restart "$3" >/dev/null && kube "$1" -n "$2" rollout status "$3" --timeout=120s >/dev/null || fail "rollout of $3"
}
scale() { # CLUSTER OBJECT N
  kube "$1" -n sample scale "$2" --replicas="$3" >/dev/null && kube "$1" -n sample rollout status "$2" --timeout=90s >/dev/null || fail "scaling $2"
}

pods() {
  step 'Pods come and go under load'
  local i
  load pods "$C1" "$HELLO"
  rollout "$C1" sample deploy/helloworld-v1
  for i in 1 2; do
    kube "$C1" -n sample delete pod -l app=helloworld >/dev/null || fail 'deleting the pod'
    ready "$C1" sample deploy/helloworld-v1
  done
  scale "$C1" deploy/helloworld-v1 4
  scale "$C2" deploy/helloworld-v2 3
  scale "$C1" deploy/helloworld-v1 1
  scale "$C2" deploy/helloworld-v2 1
  kube "$C1" -n sample delete pod -l app=helloworld --grace-period=0 --force >/dev/null 2>&1
  ready "$C1" sample deploy/helloworld-v1
  unload pods "$C1"
  pass "pods: restarted, deleted, 1→4→1 and 1→3→1, killed: $counts"
}

gateways() {
  step 'Gateways are restarted under load'
  local address inner
  address=$(kube "$C1" -n istio-system get svc istio-ingressgateway -o jsonpath='{.status.loadBalancer.ingress[0].ip}')
  load gateways "$C1" "$HELLO"
  load ingress client1 "http://$address/productpage"
  rollout "$C2" istio-system deploy/istio-eastwestgateway
  rollout "$C1" istio-system deploy/istio-ingressgateway
  rollout "$C2" istio-system deploy/istio-eastwestgateway
  unload gateways "$C1"
  inner=$counts
  unload ingress client1
  pass "gateways: east-west $inner; ingress $counts"
}

# The application makes requests after its SIGTERM, and one of them is under way for some time.
client() {
  step 'A client ends while it makes requests'
  local native line
  for native in true false; do
    kube "$C1" -n "$NS" apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata:
  name: client
  annotations: {sidecar.istio.io/nativeSidecar: "$native"}
spec:
  terminationGracePeriodSeconds: 30
  containers:
  - name: client
    image: docker.io/curlimages/curl:latest
    imagePullPolicy: IfNotPresent
    command:
    - sh
    - -c
    - |
      call() { curl -s -o /dev/null --max-time 15 -w '%{http_code}' "\$1"; }
      term() {
        i=0; bad=0
        end=\$((\$(date +%s) + 4))
        while [ \$(date +%s) -lt \$end ]; do i=\$((i + 1)); [ "\$(call helloworld.sample:5000/hello)" = 200 ] || bad=\$((bad + 1)); done
        echo "after SIGTERM: \$i requests, \$bad bad"
        exit 0
      }
      trap term TERM
      echo "started \$(call helloworld.sample:5000/hello)"
      while :; do sleep 1 & wait \$!; done
YAML
    until_true 60 'the client has started' eval 'kube "$C1" -n "$NS" logs client -c client | grep -q "started 200"'
    kube "$C1" -n "$NS" logs -f client -c client >"$work/client" 2>/dev/null &
    until_true 10 'its log' grep -q started "$work/client"
    kube "$C1" -n "$NS" delete pod client --wait=true >/dev/null
    line=$(grep 'after SIGTERM' "$work/client")
    note "native $native: $line"
    has "$line" 'after SIGTERM: [1-9][0-9]* requests, 0 bad' || fail "client, native $native: $(cat "$work/client")"
  done
  pass "client: native and classic: none bad after SIGTERM"
}

controlplane() {
  step 'The control plane of two replicas is restarted under load'
  kube "$C1" -n istio-system scale deploy istiod --replicas=2 >/dev/null
  ready "$C1" istio-system deploy/istiod
  load controlplane "$C1" "$HELLO"
  rollout "$C1" istio-system deploy/istiod
  # A pod that is made meanwhile is injected and served.
  rollout "$C1" sample deploy/helloworld-v1
  rollout "$C1" istio-system deploy/istiod
  unload controlplane "$C1"
  kube "$C1" -n istio-system scale deploy istiod --replicas=1 >/dev/null
  ready "$C1" istio-system deploy/istiod
  pass "controlplane: two rollouts: $counts"
}

subsets() {
  step 'Subsets change under load'
  local c i
  rule() { # CLUSTER LABELS-OF-a: a is v1 by some labels, b is all
    kube "$1" -n sample apply -f - >/dev/null <<YAML
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: helloworld}
spec:
  host: helloworld
  subsets: [{name: a, labels: $2}, {name: b, labels: {app: helloworld}}]
YAML
  }
  to() { # SUBSET
    kube "$C1" -n sample apply -f - >/dev/null <<YAML
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: helloworld}
spec:
  hosts: [helloworld]
  http: [{route: [{destination: {host: helloworld, subset: $1}}]}]
YAML
  }
  only() { [ "$(calls 10 "$HELLO" | grep -c "version: $1.* 200")" -eq 10 ]; }
  load subsets "$C1" "$HELLO"
  for c in "$C1" "$C2"; do rule "$c" '{version: v1}'; done
  to a
  until_true 20 'only v1' only v1
  for c in "$C2" "$C1"; do rule "$c" '{version: v2}'; done
  until_true 20 'only v2: the subset has other labels' only v2
  to b
  until_true 20 'both versions' both
  # The guide's rule of order: routes go before the subsets they name.
  kube "$C1" -n sample delete virtualservice/helloworld >/dev/null
  for c in "$C1" "$C2"; do kube "$c" -n sample delete destinationrule/helloworld >/dev/null; done
  until_true 20 'both versions' both
  unload subsets "$C1"
  pass "subsets: v1, then v2, then both: $counts"
}
