#!/bin/bash
# Replays the guide on two clusters, typing its commands and checking each result.
#
#   KUBECONFIG=… test/walkthrough.sh CONTEXT1 CONTEXT2
#
# Environment (the defaults fit the lab):
#   CARRICK          the command (carrick on PATH)
#   POOL1, POOL2     load-balancer addresses of the clusters, FROM-TO
#   CURL1, CURL2     a curl on a host that reaches the load-balancer addresses of each cluster
#   INSTALL_ARGS     more arguments for each `carrick install` (an image registry, say)
#   INSTALL_ARGS2    still more, for the second cluster alone
#   CERTS            folder for the root and the intermediates (a temporary one)
#   STEPS            which steps to run ("1-20"); each is safe to repeat
#   REQUESTS         length of the curl loop (200)
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$here")
. "$here/lib.sh"

C1=${1:?usage: walkthrough.sh CONTEXT1 CONTEXT2} C2=${2:?usage: walkthrough.sh CONTEXT1 CONTEXT2}
CARRICK=${CARRICK:-carrick}
POOL1=${POOL1:-10.10.50.75-10.10.50.90} POOL2=${POOL2:-10.29.8.75-10.29.8.90}
CURL1=${CURL1:-curl} CURL2=${CURL2:-curl}
INSTALL_ARGS=${INSTALL_ARGS:-} INSTALL_ARGS2=${INSTALL_ARGS2:-}
REQUESTS=${REQUESTS:-200}
STEPS=${STEPS:-1-20}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
CERTS=${CERTS:-$work/certs}
cd "$top" || exit 1

# carrick and kubectl as functions, so that what is shown is what the user types.
carrick() { command "$CARRICK" "$@"; }
wanted() { local n; n=$1; [ "$n" -ge "${STEPS%-*}" ] && [ "$n" -le "${STEPS#*-}" ]; }
kube() { kubectl --context="$1" "${@:2}"; }
ready() { until_true 180 "$3 of namespace $2 in $1" kube "$1" -n "$2" rollout status --timeout=1s "$3"; }
pod() { kube "$1" -n "$2" get pod -l "$3" --field-selector=status.phase=Running -o jsonpath='{.items[0].metadata.name}'; }
lb_address() { kube "$1" -n istio-system get service "$2" -o jsonpath='{.status.loadBalancer.ingress[0].ip}'; }
has_lb_address() { [ -n "$(lb_address "$1" "$2")" ]; }

if wanted 1; then
  step '1. Do these clusters suit this build?'
  for c in "$C1" "$C2"; do run carrick x precheck --context="$c"; done
fi

pools() { # CONTEXT RANGE
  cat <<EOF
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata:
  name: first-pool
  namespace: metallb-system
spec:
  addresses:
  - $2
  autoAssign: true
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata:
  name: l2
  namespace: metallb-system
EOF
}

if wanted 2; then
  step '2. A load balancer on bare metal'
  for c in "$C1" "$C2"; do
    range=$POOL1; [ "$c" = "$C1" ] || range=$POOL2
    pools "$c" "$range" >"$work/pool-$c.yaml"
    run carrick lb install --context="$c"
    run kubectl --context="$c" apply -f "$work/pool-$c.yaml"
  done
  for c in "$C1" "$C2"; do
    ready "$c" metallb-system deploy/controller
    ready "$c" metallb-system ds/speaker
    run kubectl --context="$c" -n metallb-system get po
  done
fi

if wanted 3; then
  step '3. The demo profile on the first cluster'
  # shellcheck disable=SC2086
  run carrick install --context="$C1" --set profile=demo $INSTALL_ARGS -y | tee "$work/install"
  [ "${PIPESTATUS[0]}" -eq 0 ] || exit 1
  for line in 'Istio core installed' 'Istiod installed' 'Egress gateways installed' 'Ingress gateways installed' 'Installation complete'; do
    expect 'install' "$(cat "$work/install")" "^✔ $line\$"
  done
fi

bookinfo_page() { # prints the reviews pod and the color of the stars
  local page
  page=$($CURL1 -sS --max-time 5 "http://$(lb_address "$C1" istio-ingressgateway)/productpage") || return 1
  has "$page" '<title>Simple Bookstore App</title>' || { echo "$page"; return 1; }
  grep -Eo 'reviews-v[123]' <<<"$page" | head -1
}
all_reviews() {
  local seen='' i r
  for i in $(seq 1 30); do
    r=$(bookinfo_page) || { echo "$r"; return 1; }
    case $seen in *"$r"*) ;; *) seen="$seen $r" ;; esac
  done
  case $seen in *v1*v2*v3* | *v1*v3*v2* | *v2*v1*v3* | *v2*v3*v1* | *v3*v1*v2* | *v3*v2*v1*) echo "answered by$seen" ;; *) echo "only$seen"; return 1 ;; esac
}

if wanted 4; then
  step '4. Bookinfo behind the ingress gateway'
  run kubectl --context="$C1" apply -f samples/bookinfo/platform/kube/bookinfo.yaml
  run kubectl --context="$C1" apply -f samples/bookinfo/networking/bookinfo-gateway.yaml
  run kubectl --context="$C1" get vs
  for d in details-v1 ratings-v1 reviews-v1 reviews-v2 reviews-v3 productpage-v1; do ready "$C1" default "deploy/$d"; done
  until_true 60 'an address of the ingress gateway' has_lb_address "$C1" istio-ingressgateway
  until_true 60 'the product page, by all versions of reviews' all_reviews
  note "http://$(lb_address "$C1" istio-ingressgateway)/productpage: $(all_reviews)"
fi

if wanted 6; then
  step '6. The self-signed CA'
  kube "$C1" -n istio-system get secret cacerts >/dev/null 2>&1 ||
    run kubectl --context="$C1" -n istio-system get secret istio-ca-secret
fi

if wanted 7; then
  step '7. A root CA, and an intermediate for each cluster'
  if [ ! -e "$CERTS/root-key.pem" ]; then
    mkdir -p "$CERTS"
    (cd "$CERTS" && run carrick ca root && run carrick ca intermediate "$C1" && run carrick ca intermediate "$C2") || exit 1
  fi
  for c in "$C1" "$C2"; do run openssl verify -CAfile "$CERTS/root-cert.pem" "$CERTS/$c/ca-cert.pem"; done
fi

if wanted 8; then
  step '8. cacerts'
  for c in "$C1" "$C2"; do
    kube "$c" get ns istio-system >/dev/null 2>&1 || run kubectl --context="$c" create namespace istio-system
    if ! kube "$c" -n istio-system get secret cacerts >/dev/null 2>&1; then
      run kubectl --context="$c" create secret generic cacerts -n istio-system \
        --from-file="$CERTS/$c/ca-cert.pem" --from-file="$CERTS/$c/ca-key.pem" \
        --from-file="$CERTS/$c/root-cert.pem" --from-file="$CERTS/$c/cert-chain.pem"
      if kube "$c" -n istio-system get deploy istiod >/dev/null 2>&1; then
        run kubectl --context="$c" -n istio-system rollout restart deploy istiod
        ready "$c" istio-system deploy/istiod
      fi
    fi
  done
  log=$(kube "$C1" -n istio-system logs deploy/istiod)
  expect 'the log of istiod' "$log" 'Use plugged-in cert at etc/cacerts/ca-key.pem'
  grep -E 'plugged-in|x509 cert' <<<"$log" | head -8
fi

more() { # CONTEXT: the arguments for its installations
  echo "$INSTALL_ARGS $([ "$1" = "$C1" ] || echo "$INSTALL_ARGS2")"
}

operator() { # CONTEXT NETWORK
  cat <<EOF
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
spec:
  values:
    global:
      meshID: mesh1
      multiCluster:
        clusterName: $1
      network: $2
EOF
}

if wanted 9; then
  step '9. Networks and names'
  for c in "$C1" "$C2"; do
    n=network1; [ "$c" = "$C1" ] || n=network2
    operator "$c" "$n" >"$work/$c.yaml"
    run kubectl --context="$c" label namespace istio-system topology.istio.io/network="$n" --overwrite
    # shellcheck disable=SC2046
    run carrick install --context="$c" $(more "$c") -y -f "$work/$c.yaml"
  done
fi

if wanted 10; then
  step '10. East-west gateways'
  for c in "$C1" "$C2"; do
    n=network1; [ "$c" = "$C1" ] || n=network2
    printf '%s$ samples/multicluster/gen-eastwest-gateway.sh --mesh mesh1 --cluster %s --network %s | carrick install --context=%s %s -y -f -%s\n' "$BOLD" "$c" "$n" "$c" "$(more "$c")" "$RESET"
    # shellcheck disable=SC2046
    samples/multicluster/gen-eastwest-gateway.sh --mesh mesh1 --cluster "$c" --network "$n" |
      carrick install --context="$c" $(more "$c") -y -f - || fail 'the east-west gateway'
  done
  for c in "$C1" "$C2"; do
    until_true 60 'an address of the east-west gateway' has_lb_address "$c" istio-eastwestgateway
    run kubectl --context="$c" -n istio-system get svc
  done
fi

if wanted 11; then
  step '11. Services are exposed'
  for c in "$C1" "$C2"; do run kubectl --context="$c" apply -n istio-system -f samples/multicluster/expose-services.yaml; done
fi

synced() { [ "$(carrick remote-clusters --context="$1" | grep -c ' synced ')" -eq 2 ]; }

if wanted 12; then
  step '12. Remote secrets'
  for pair in "$C1 $C2" "$C2 $C1"; do
    from=${pair% *} to=${pair#* }
    shown carrick create-remote-secret --context="$from" --name="$from" '|' kubectl apply --context="$to" -f - | tr -d "'"
    carrick create-remote-secret --context="$from" --name="$from" | kube "$to" apply -f - || fail 'the remote secret'
  done
  for c in "$C1" "$C2"; do
    until_true 60 "both clusters synced in $c" synced "$c"
    run carrick remote-clusters --context="$c"
  done
fi

if wanted 13; then
  step '13. The sample, v1 here and v2 there'
  v=v1
  for c in "$C1" "$C2"; do
    kube "$c" get ns sample >/dev/null 2>&1 || run kubectl --context="$c" create namespace sample
    run kubectl --context="$c" label namespace sample istio-injection=enabled --overwrite
    run kubectl --context="$c" apply -n sample -f samples/helloworld/helloworld.yaml -l service=helloworld
    run kubectl --context="$c" apply -n sample -f samples/helloworld/helloworld.yaml -l version=$v
    run kubectl --context="$c" apply -n sample -f samples/sleep/sleep.yaml
    v=v2
  done
  ready "$C1" sample deploy/helloworld-v1
  ready "$C2" sample deploy/helloworld-v2
  for c in "$C1" "$C2"; do
    ready "$c" sample deploy/sleep
    run kubectl --context="$c" get pod -n sample
    expect 'the pods of sample' "$(kube "$c" get pod -n sample)" '^helloworld-.* 2/2 +Running'
  done
fi

# hello CONTEXT N: calls helloworld N times from sleep and prints the answers; one process in the pod, one call after another.
hello() {
  kube "$1" exec -n sample -c sleep "$(pod "$1" sample app=sleep)" -- \
    sh -c 'i=0; while [ $i -lt '"$2"' ]; do curl -sS --max-time 15 helloworld.sample:5000/hello || echo FAILED; i=$((i+1)); done'
}
# counted CONTEXT N: the answers by version, on one line; fails unless all came and both versions have 35 % to 65 %.
counted() {
  local out v1 v2
  out=$(hello "$1" "$2") || { echo "$out"; return 1; }
  v1=$(grep -c '^Hello version: v1, instance: ' <<<"$out") v2=$(grep -c '^Hello version: v2, instance: ' <<<"$out")
  echo "$2 requests from $1: v1 $v1, v2 $v2, failed $(($2 - v1 - v2))"
  [ $((v1 + v2)) -eq "$2" ] && [ $((v1 * 100)) -ge $(($2 * 35)) ] && [ $((v1 * 100)) -le $(($2 * 65)) ]
}
both() { local out; out=$(hello "$1" 8); has "$out" 'version: v1' && has "$out" 'version: v2'; }

if wanted 14; then
  step '14. One name, two clusters'
  for c in "$C1" "$C2"; do
    until_true 60 "both versions from $c" both "$c"
    shown kubectl exec --context="$c" -n sample -c sleep "$(pod "$c" sample app=sleep)" -- curl helloworld.sample:5000/hello
    hello "$c" 4
    counted "$c" "$REQUESTS" || fail 'the share of the versions'
  done
fi

if wanted 15; then
  step '15. The access log, switched on live'
  for c in "$C1" "$C2"; do
    kube "$c" -n istio-system get cm istio -o json |
      jq 'if (.data.mesh | test("(^|\n)accessLogFile:")) then . else .data.mesh += "\naccessLogFile: /dev/stdout\n" end | {apiVersion, kind, metadata: {name: "istio", namespace: "istio-system"}, data: {mesh: .data.mesh}}' >"$work/cm.json"
    printf '%s$ kubectl --context=%s -n istio-system edit cm istio   # data.mesh: accessLogFile: /dev/stdout%s\n' "$BOLD" "$c" "$RESET"
    kube "$c" -n istio-system patch cm istio --type merge --patch-file "$work/cm.json" || fail 'the ConfigMap'
  done
fi

# line CONTEXT SELECTOR PATTERN: the newest matching line of a sidecar's log.
line() { kube "$1" -n sample logs -l "$2" -c istio-proxy --tail=200 | grep -E -- "$3" | tail -1; }
# logged: calls until one request was answered remotely and one locally, with lines at both ends.
logged() {
  local here='"10\.[0-9.]+:5000" outbound\|5000\|\|helloworld' id
  hello "$C1" 4 >/dev/null
  remote_source=$(line "$C1" app=sleep ':15443" outbound\|5000\|\|helloworld') && [ -n "$remote_source" ] || return 1
  local_source=$(line "$C1" app=sleep "$here") && [ -n "$local_source" ] || return 1
  id=$(request_id "$remote_source")
  remote_destination=$(line "$C2" app=helloworld "$id") && [ -n "$remote_destination" ] || return 1
  id=$(request_id "$local_source")
  local_destination=$(line "$C1" app=helloworld "$id") && [ -n "$local_destination" ]
}
request_id() { grep -Eo '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}' <<<"$1" | head -1; }

if wanted 16; then
  step '16-17. The way of a request, from the logs'
  bound=$(($(date +%s) + 60))
  until logged; do [ "$(date +%s)" -lt $bound ] || fail 'no log lines of one request at both ends within 60 s'; done
  gateway2=$(lb_address "$C2" istio-eastwestgateway)
  note 'answered by the other cluster: source'; echo "$remote_source"
  expect 'the source line' "$remote_source" "\"$gateway2:15443\" outbound\|5000\|\|helloworld\.sample\.svc\.cluster\.local [0-9.]+:[0-9]+ [0-9.]+:5000 [0-9.]+:[0-9]+ - default\$"
  note 'answered by the other cluster: destination'; echo "$remote_destination"
  expect 'the destination line' "$remote_destination" '"[0-9.]+:5000" inbound\|5000\|\| 127\.0\.0\.6:[0-9]+ [0-9.]+:5000 [0-9.]+:[0-9]+ outbound_\.5000_\._\.helloworld\.sample\.svc\.cluster\.local default$'
  note 'answered here: source'; echo "$local_source"
  note 'answered here: destination'; echo "$local_destination"
fi

if wanted 18; then
  step '18. proxy-status'
  for c in "$C1" "$C2"; do run carrick proxy-status --context="$c"; done
fi

endpoints() { carrick proxy-config endpoints "$(pod "$1" sample app=sleep).sample" --context="$1" --cluster 'outbound|5000||helloworld.sample.svc.cluster.local' "${@:2}"; }

if wanted 19; then
  step '19. proxy-config'
  p=$(pod "$C1" sample app=sleep)
  run carrick proxy-config route "$p.sample" --context="$C1" --name 5000
  run carrick proxy-config endpoints "$p.sample" --context="$C1" --cluster 'outbound|5000||helloworld.sample.svc.cluster.local' -o wide
  [ "$(endpoints "$C1" | grep -c HEALTHY)" -eq 2 ] || { endpoints "$C1"; fail 'two endpoints: the local pod and the other gateway'; }
fi

seen_pods() { hello "$1" 40 | grep 'version: v2' | sort -u | wc -l; }
two_behind() { [ "$(seen_pods "$C1")" -eq 2 ]; }
endpoint_count() { [ "$(endpoints "$1" | grep -c HEALTHY)" -eq "$2" ]; }

if wanted 20; then
  step '20. More pods'
  run kubectl --context="$C2" -n sample scale deploy helloworld-v2 --replicas=2
  ready "$C2" sample deploy/helloworld-v2
  until_true 60 'both pods behind the gateway answer' two_behind
  endpoint_count "$C1" 2 || fail 'still one remote endpoint, with twice the weight'
  run carrick proxy-config endpoints "$(pod "$C1" sample app=sleep).sample" --context="$C1" --cluster 'outbound|5000||helloworld.sample.svc.cluster.local' -o wide
  run kubectl --context="$C1" -n sample scale deploy helloworld-v1 --replicas=2
  until_true 60 'one more local endpoint' endpoint_count "$C1" 3
  for c in "$C1" "$C2"; do counted "$c" "$REQUESTS" || note "the shares follow the pods"; done
  run kubectl --context="$C1" -n sample scale deploy helloworld-v1 --replicas=1
  run kubectl --context="$C2" -n sample scale deploy helloworld-v2 --replicas=1
fi
