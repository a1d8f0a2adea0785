#!/bin/bash
# Types the guide on two clusters, command by command, and checks what each one gives.
#
#   KUBECONFIG=… test/walkthrough.sh CONTEXT1 CONTEXT2
#   test/walkthrough.sh --list          prints the commands, and touches nothing
#
# The paths of its commands are those of an unpacked release, in which it may stand, too. It needs
# kubectl, jq, openssl and, unless CA=carrick, make.
#
# Environment (the defaults fit the lab):
#   CARRICK          the command (carrick on PATH)
#   WORK             folder to work in: the certs stay there (in a release the release's own,
#                    elsewhere a temporary one)
#   POOL1, POOL2     load-balancer addresses of the clusters, FROM-TO
#   CURL1, CURL2     a curl on a host that reaches the load-balancer addresses of each cluster
#   HUB_ARGS         arguments that name a registry, for `carrick install` and `carrick lb`
#   INSTALL_ARGS     more arguments for each `carrick install`
#   INSTALL_ARGS2    still more, for the second cluster alone
#   PROFILE2         profile that the second cluster has before its CA comes (none: it comes first)
#   LB               how the load balancer comes: install, or manifest (kubectl apply)
#   CA               what makes the certificates of step 7: make (Istio's Makefile) or carrick
#   KEY              kind of the keys that carrick makes there: rsa4096 or p256
#   STEPS            which steps to run ("1-20"; 21 upgrades, 22 uninstalls); each is safe to repeat
#   REQUESTS         length of the curl loop (200)
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$here")
. "$here/lib.sh"

LIST=''
[ "${1:-}" != --list ] || { LIST=yes BOLD='' RESET=''; set -- cluster1 cluster2; }
C1=${1:?usage: walkthrough.sh CONTEXT1 CONTEXT2} C2=${2:?usage: walkthrough.sh CONTEXT1 CONTEXT2}
CARRICK=${CARRICK:-carrick}
POOL1=${POOL1:-10.10.50.75-10.10.50.90} POOL2=${POOL2:-10.29.8.75-10.29.8.90}
CURL1=${CURL1:-curl} CURL2=${CURL2:-curl}
HUB_ARGS=${HUB_ARGS:+ $HUB_ARGS}
INSTALL_ARGS=${INSTALL_ARGS:+ $INSTALL_ARGS} INSTALL_ARGS2=${INSTALL_ARGS2:+ $INSTALL_ARGS2}
PROFILE2=${PROFILE2:-} CA=${CA:-make} KEY=${KEY:+ --key $KEY} LB=${LB:-install}
REQUESTS=${REQUESTS:-200}
STEPS=${STEPS:-1-20}
[ -z "$LIST" ] || STEPS=1-22
[ -n "$LIST" ] || for p in "$CARRICK" kubectl jq openssl $([ "$CA" != make ] || echo make); do
  command -v "$p" >/dev/null || fail "the program $p is not on the PATH"
done
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
WORK=${WORK:-$([ -d "$top/images" ] && echo "$top" || echo "$temporary")}
case ${KUBECONFIG:-/} in /*) ;; *) KUBECONFIG=$PWD/$KUBECONFIG ;; esac
cd "$WORK" || exit 1
for d in samples tools; do [ -e $d ] || ln -s "$top/$d" $d; done

wanted() { local n; n=$1; [ "$n" -ge "${STEPS%-*}" ] && [ "$n" -le "${STEPS#*-}" ]; }

# typed COMMAND [CODE]: shows a command as the user types it, and runs it in this shell; another
# exit code than 0, or CODE, ends the script.
typed() {
  printf '%s$ %s%s\n' "$BOLD" "$1" "$RESET"
  [ -z "$LIST" ] || return 0
  local code=0
  eval "$1" || code=$?
  [ $code -eq "${2:-0}" ] || fail "exit code $code of: $1"
}
# kept FILE COMMAND: the same, and what it prints is kept in a file.
kept() {
  typed "$2" | tee "$1"
  [ "${PIPESTATUS[0]}" -eq 0 ] || exit 1
}
# in_both FUNCTION: runs it for either cluster, at the same time as in two terminals: what is typed for the
# second is shown when it is done. What the function changes of the shell, as its folder, is lost.
in_both() {
  local job code=0
  if [ -n "$LIST" ]; then "$1" "$C1"; "$1" "$C2"; return; fi
  ("$1" "$C2") >"$temporary/second" 2>&1 &
  job=$!
  ("$1" "$C1") || code=1
  wait $job || code=1
  cat "$temporary/second"
  [ $code -eq 0 ] || exit 1
}
carrick() { command "$CARRICK" "$@"; }
# All that checks ends up in one of these, or in a function that is called through one of them.
ready() { until_true 180 "$3 of namespace $2 in $1" kube "$1" -n "$2" rollout status --timeout=5s "$3"; }
available() { check "deployments of namespace $2 in $1" kube "$1" -n "$2" wait --for=condition=Available deploy --all --timeout=180s >/dev/null; }
check() { "${@:2}" || fail "$1"; }
if [ -n "$LIST" ]; then
  step() { :; }
  note() { :; }
  expect() { :; }
  until_true() { :; }
  check() { :; }
fi
lb_address() { kube "$1" -n istio-system get service "$2" -o jsonpath='{.status.loadBalancer.ingress[0].ip}'; }
has_lb_address() { [ -n "$(lb_address "$1" "$2")" ]; }

# Steps 1 to 4 are typed where each cluster has a kubeconfig of its own, as kubeadm writes it:
# the same names in both, and no --context. Step 5 joins them into one.
given=${KUBECONFIG:-}
kube() { KUBECONFIG=$given kubectl --context="$1" "${@:2}"; }
[ -z "$LIST" ] || kube() { :; }
admin_conf() { # CONTEXT
  kube "$1" config view --raw --minify --flatten -o json |
    jq '.clusters[0].name = "kubernetes" | .users[0].name = "kubernetes-admin" | ."current-context" = "kubernetes-admin@kubernetes" |
      .contexts[0] = {name: "kubernetes-admin@kubernetes", context: {cluster: "kubernetes", user: "kubernetes-admin"}}' >"$temporary/conf" &&
    kubectl --kubeconfig="$temporary/conf" config view --raw -o yaml
}
on() { typed "export KUBECONFIG=\$PWD/$1.conf"; }
if [ "${STEPS%-*}" -le 5 ] && [ -z "$LIST" ]; then
  for c in "$C1" "$C2"; do (umask 077; admin_conf "$c" >"$c.conf") || fail "the kubeconfig of $c"; done
fi

if wanted 1; then
  step '1. Do these clusters suit this build?'
  for c in "$C1" "$C2"; do
    on "$c"
    typed 'carrick x precheck'
  done
fi

load_balancer() { # CONTEXT
  local range=$POOL1
  [ "$1" = "$C1" ] || range=$POOL2
  on "$1"
  if [ "$LB" = manifest ]; then
    typed "carrick lb manifest$HUB_ARGS > carrick-lb-$1.yaml" # each its own: they run at the same time
    typed "kubectl apply -f carrick-lb-$1.yaml"
  else
    typed "carrick lb install$HUB_ARGS"
  fi
  typed "kubectl apply -f - <<EOF
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata:
  name: first-pool
  namespace: metallb-system
spec:
  addresses:
  - $range
  autoAssign: true
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata:
  name: l2
  namespace: metallb-system
EOF"
}

if wanted 2; then
  step '2. A load balancer on bare metal'
  in_both load_balancer
  for c in "$C1" "$C2"; do
    if [ "$LB" = manifest ]; then # nobody has waited yet
      ready "$c" metallb-system deploy/controller
      ready "$c" metallb-system ds/speaker
    fi
    on "$c"
    typed 'kubectl -n metallb-system get po'
  done
fi

installed() { # NAME…: the lines that install ends with, in their order
  local line
  for line in "$@" 'Installation complete'; do expect 'install' "$(cat "$temporary/install")" "^✔ $line\$"; done
}

if wanted 3; then
  step '3. The demo profile'
  for c in "$C1" ${PROFILE2:+"$C2"}; do
    on "$c"
    profile=demo more=$HUB_ARGS$INSTALL_ARGS
    [ "$c" = "$C1" ] || profile=$PROFILE2 more=$more$INSTALL_ARGS2
    kept "$temporary/install" "carrick install --set profile=$profile$more -y"
    [ "$c" = "$C2" ] || check 'install' installed 'Istio core installed' 'Istiod installed' 'Egress gateways installed' 'Ingress gateways installed'
  done
fi

bookinfo_page() { # ADDRESS: prints the reviews pod
  local page
  page=$($CURL1 -sS --max-time 5 "http://$1/productpage") || return 1
  has "$page" '<title>Simple Bookstore App</title>' || { echo "$page"; return 1; }
  grep -Eo 'reviews-v[123]' <<<"$page" | head -1
}
all_reviews() {
  local seen='' i r address
  address=$(lb_address "$C1" istio-ingressgateway)
  for i in $(seq 1 30); do
    r=$(bookinfo_page "$address") || { echo "$r"; return 1; }
    case $seen in *"$r"*) ;; *) seen="$seen $r" ;; esac
    [ "$(wc -w <<<"$seen")" -lt 3 ] || { echo "http://$address/productpage is answered by$seen"; return; }
  done
  echo "only$seen"
  return 1
}

if wanted 4; then
  step '4. Bookinfo behind the ingress gateway'
  on "$C1"
  typed 'kubectl apply -f samples/bookinfo/platform/kube/bookinfo.yaml'
  typed 'kubectl apply -f samples/bookinfo/networking/bookinfo-gateway.yaml'
  typed 'kubectl get vs'
  available "$C1" default
  until_true 60 'an address of the ingress gateway' has_lb_address "$C1" istio-ingressgateway
  until_true 60 'the product page, by all versions of reviews' all_reviews
  check 'the product page' all_reviews
fi

same_contexts() { [ "$(kubectl --kubeconfig=merged.conf config get-contexts -o name | sort)" = "$(kubectl --kubeconfig=once.conf config get-contexts -o name | sort)" ]; }

if wanted 5; then
  step '5. One kubeconfig'
  [ -n "$LIST" ] || for c in "$C1" "$C2"; do cp -p "$c.conf" "admin-$c.conf"; rm -f once.conf; done
  for c in "$C1" "$C2"; do
    typed "sed -i 's/kubernetes-admin@kubernetes/$c/; s/kubernetes-admin/$c-admin/; s/: kubernetes\$/: $c/' $c.conf"
  done
  typed "KUBECONFIG=$C1.conf:$C2.conf kubectl config view --flatten > merged.conf"
  on merged
  typed 'kubectl config get-contexts'
  note 'or, in one command:'
  typed "carrick mesh kubeconfig merge admin-$C1.conf admin-$C2.conf --names $C1,$C2 -o once.conf"
  check 'both ways give the same contexts' same_contexts
elif [ "${STEPS%-*}" -le 4 ]; then
  if [ -n "$given" ]; then export KUBECONFIG=$given; else unset KUBECONFIG; fi
fi

if wanted 6; then
  step '6. The self-signed CA'
  if ! kube "$C1" -n istio-system get secret cacerts >/dev/null 2>&1 || [ -n "$LIST" ]; then
    for c in "$C1" ${PROFILE2:+"$C2"}; do
      typed "kubectl --context=$c -n istio-system get secret istio-ca-secret"
      typed "kubectl --context=$c -n istio-system get secret istio-ca-secret -o jsonpath='{.data.ca-cert\\.pem}' | base64 -d | openssl x509 -noout -subject -serial -enddate -fingerprint -sha256"
    done
    [ -z "$PROFILE2$LIST" ] || typed "carrick ca show --context=$C1 --context=$C2" 1
  fi
fi

if wanted 7; then
  step '7. A root CA, and an intermediate for each cluster'
  typed 'mkdir -p certs'
  typed 'cd certs'
  if [ "$CA" = make ] || [ -n "$LIST" ]; then
    typed 'make -f ../tools/certs/Makefile.selfsigned.mk root-ca'
    for c in "$C1" "$C2"; do typed "make -f ../tools/certs/Makefile.selfsigned.mk $c-cacerts"; done
  fi
  if [ "$CA" != make ] || [ -n "$LIST" ]; then
    [ -e root-key.pem ] || typed "carrick ca root$KEY"
    for c in "$C1" "$C2"; do [ -e "$c/ca-key.pem" ] || typed "carrick ca intermediate $c$KEY"; done
  fi
  for c in "$C1" "$C2"; do typed "openssl verify -CAfile root-cert.pem $c/ca-cert.pem"; done
  typed 'cd ..'
fi

plugged_in() { # CONTEXT
  local log
  log=$(kube "$1" -n istio-system logs deploy/istiod) && has "$log" 'Use plugged-in cert at etc/cacerts/ca-key.pem' &&
    has "$log" "x509 cert - Issuer: \"CN=Root CA,O=Istio\", Subject: \"CN=Intermediate CA,O=Istio,L=$1\"" || { tail -20 <<<"$log"; return 1; }
}

cacerts() { # CONTEXT
  kube "$1" get ns istio-system >/dev/null 2>&1 && [ -z "$LIST" ] || typed "kubectl --context=$1 create namespace istio-system"
  [ -n "$LIST" ] || ! kube "$1" -n istio-system get secret cacerts >/dev/null 2>&1 || return 0
  typed "kubectl --context=$1 create secret generic cacerts -n istio-system --from-file=$1/ca-cert.pem --from-file=$1/ca-key.pem --from-file=$1/root-cert.pem --from-file=$1/cert-chain.pem"
  [ -n "$LIST" ] || kube "$1" -n istio-system get deploy istiod >/dev/null 2>&1 || return 0
  typed "kubectl --context=$1 -n istio-system rollout restart deploy istiod"
  ready "$1" istio-system deploy/istiod
  until_true 30 "istiod of $1 signs with its cacerts" plugged_in "$1"
  typed "kubectl --context=$1 -n istio-system logs deploy/istiod | grep -E 'plugged-in|x509 cert'"
}

if wanted 8; then
  step '8. cacerts'
  typed 'cd certs'
  in_both cacerts
  typed 'cd ..'
fi

more() { echo "$HUB_ARGS$INSTALL_ARGS$([ "$1" = "$C1" ] || echo "$INSTALL_ARGS2")"; } # CONTEXT: the arguments for its installations
absent() { ! kube "$1" -n istio-system get "$2" "$3" >/dev/null 2>&1; }

network() { [ "$1" = "$C1" ] && echo network1 || echo network2; } # CONTEXT
named() { # CONTEXT
  typed "kubectl --context=$1 label namespace istio-system topology.istio.io/network=$(network "$1") --overwrite"
  typed "cat <<EOF > $1.yaml
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
spec:
  values:
    global:
      meshID: mesh1
      multiCluster:
        clusterName: $1
      network: $(network "$1")
EOF"
  typed "carrick install --context=$1$(more "$1") -f $1.yaml -y"
  check 'the egress gateway went with the demo profile' absent "$1" deploy istio-egressgateway
  if [ "$1$PROFILE2" = "$C2" ] && ! absent "$1" secret cacerts; then
    check 'where cacerts came first, no self-signed CA is made' absent "$1" secret istio-ca-secret
  fi
}

if wanted 9; then
  step '9. Networks and names'
  in_both named
fi

eastwest() { # CONTEXT
  typed "samples/multicluster/gen-eastwest-gateway.sh --mesh mesh1 --cluster $1 --network $(network "$1") | carrick install --context=$1$(more "$1") -y -f -"
}

if wanted 10; then
  step '10. East-west gateways'
  in_both eastwest
  for c in "$C1" "$C2"; do
    until_true 60 'an address of the east-west gateway' has_lb_address "$c" istio-eastwestgateway
    kept "$temporary/svc" "kubectl --context=$c -n istio-system get svc"
    expect 'the ports' "$(cat "$temporary/svc")" '^istio-eastwestgateway .*[ ,]15021:[0-9]+/TCP,15443:[0-9]+/TCP,15012:[0-9]+/TCP,15017:[0-9]+/TCP'
  done
fi

if wanted 11; then
  step '11. Services are exposed'
  for c in "$C1" "$C2"; do typed "kubectl --context=$c apply -n istio-system -f samples/multicluster/expose-services.yaml"; done
fi

# synced CONTEXT: each control plane there, of which there may be two, lists both clusters as synced.
synced() {
  carrick remote-clusters --context="$1" |
    awk 'NR > 1 { if (!($1 in seen)) { seen[$1]; n++ }; if (!/ synced /) bad = 1 } END { exit bad || n != 2 }'
}

if wanted 12; then
  step '12. Remote secrets'
  typed "carrick create-remote-secret --context=$C1 --name=$C1 | kubectl apply --context=$C2 -f -"
  typed "carrick create-remote-secret --context=$C2 --name=$C2 | kubectl apply --context=$C1 -f -"
  for c in "$C1" "$C2"; do
    until_true 60 "both clusters synced in $c" synced "$c"
    typed "carrick remote-clusters --context=$c"
  done
fi

sample() { # CONTEXT
  local v=v1
  [ "$1" = "$C1" ] || v=v2
  kube "$1" get ns sample >/dev/null 2>&1 && [ -z "$LIST" ] || typed "kubectl --context=$1 create namespace sample"
  typed "kubectl --context=$1 label namespace sample istio-injection=enabled --overwrite"
  typed "kubectl --context=$1 apply -n sample -f samples/helloworld/helloworld.yaml -l service=helloworld"
  typed "kubectl --context=$1 apply -n sample -f samples/helloworld/helloworld.yaml -l version=$v"
  typed "kubectl --context=$1 apply -n sample -f samples/sleep/sleep.yaml"
  available "$1" sample
}

if wanted 13; then
  step '13. The sample, v1 here and v2 there'
  in_both sample
  for c in "$C1" "$C2"; do
    kept "$temporary/pods" "kubectl --context=$c get pod -n sample"
    expect 'the pods of sample' "$(cat "$temporary/pods")" '^helloworld-.* 2/2 +Running'
  done
fi

# hello CONTEXT N: calls helloworld N times from sleep, one call after another, each on a connection of its own, and
# prints the answers. One curl makes them all: to start one takes longer than a call.
hello() {
  kube "$1" exec -n sample -c sleep deploy/sleep -- curl -sS --max-time 15 -H 'Connection: close' "helloworld.sample:5000/hello#[1-$2]"
}
# counted CONTEXT N: the answers by version, on one line; fails unless all came and both versions have 35 % to 65 %.
counted() {
  local out v1 v2
  out=$(hello "$1" "$2") || { echo "$out"; return 1; }
  v1=$(grep -c '^Hello version: v1, instance: ' <<<"$out") v2=$(grep -c '^Hello version: v2, instance: ' <<<"$out")
  echo "$2 requests from $1: v1 $v1 ($(instances "$out" v1) pods), v2 $v2 ($(instances "$out" v2) pods), failed $(($2 - v1 - v2))"
  [ $((v1 + v2)) -eq "$2" ] && [ $((v1 * 100)) -ge $(($2 * 35)) ] && [ $((v1 * 100)) -le $(($2 * 65)) ]
}
instances() { grep "^Hello version: $2, " <<<"$1" | sort -u | wc -l; }
both() { local out; out=$(hello "$1" 8); has "$out" 'version: v1' && has "$out" 'version: v2'; }
# loops N: counted from both clusters, at the same time.
loops() {
  local job code=0
  counted "$C1" "$1" >"$temporary/loop1" &
  job=$!
  counted "$C2" "$1" >"$temporary/loop2" || code=1
  wait $job || code=1
  cat "$temporary/loop1" "$temporary/loop2"
  return $code
}

greeted() { # CONTEXT
  until_true 60 "both versions from $1" both "$1"
  typed "kubectl --context=$1 exec -n sample -c sleep \"\$(kubectl --context=$1 get pod -n sample -l app=sleep -o jsonpath='{.items[0].metadata.name}')\" -- curl -sS helloworld.sample:5000/hello"
  typed "kubectl --context=$1 exec -n sample -c sleep deploy/sleep -- curl -sS helloworld.sample:5000/hello"
}

if wanted 14; then
  step '14. One name, two clusters'
  in_both greeted
  check 'the share of the versions' loops "$REQUESTS"
fi

if wanted 15; then
  step '15. The access log, switched on live'
  # shellcheck disable=SC1003
  add='/^ *accessLogFile:/d; s|^  mesh: .*|&\n    accessLogFile: /dev/stdout|'
  typed "KUBE_EDITOR=\"sed -i '$add'\" kubectl --context=$C1 -n istio-system edit cm istio"
  typed "kubectl --context=$C2 -n istio-system get cm istio -o yaml | sed '$add' | kubectl --context=$C2 apply -f - 2>&1"
fi

# line CONTEXT SELECTOR PATTERN: the newest matching line of a sidecar's log.
line() { kube "$1" -n sample logs -l "$2" -c istio-proxy --tail=200 | grep -E -- "$3" | tail -1; }
# logged: whether one request was answered remotely and one locally, with lines at both ends.
logged() {
  local here='"10\.[0-9.]+:5000" outbound\|5000\|\|helloworld' id
  remote_source=$(line "$C1" app=sleep ':15443" outbound\|5000\|\|helloworld') && [ -n "$remote_source" ] || return 1
  local_source=$(line "$C1" app=sleep "$here") && [ -n "$local_source" ] || return 1
  id=$(request_id "$remote_source")
  remote_destination=$(line "$C2" app=helloworld "$id") && [ -n "$remote_destination" ] || return 1
  id=$(request_id "$local_source")
  local_destination=$(line "$C1" app=helloworld "$id") && [ -n "$local_destination" ]
}
request_id() { grep -Eo '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}' <<<"$1" | head -1; }
both_logged() {
  local bound=$(($(date +%s) + 60)) n=0
  remote_source='' local_source=''
  until [ $n -gt 0 ] && logged; do
    [ "$(date +%s)" -lt $bound ] || return 1
    # A proxy writes its lines a moment later; of calls before it has heard of the log there are none.
    [ -n "$remote_source" ] && [ -n "$local_source" ] && [ $((n % 4)) -ne 0 ] || hello "$C1" 8 >/dev/null
    n=$((n + 1))
  done
}
logs() {
  local gateway2 a='[0-9.]+:[0-9]+'
  gateway2=$(lb_address "$C2" istio-eastwestgateway)
  note 'answered by the other cluster: source'; echo "$remote_source"
  expect 'the source line' "$remote_source" "\"$gateway2:15443\" outbound\|5000\|\|helloworld\.sample\.svc\.cluster\.local $a [0-9.]+:5000 $a - default\$"
  note 'answered by the other cluster: destination'; echo "$remote_destination"
  expect 'the destination line' "$remote_destination" '"[0-9.]+:5000" inbound\|5000\|\| 127\.0\.0\.6:[0-9]+ [0-9.]+:5000 [0-9.]+:[0-9]+ outbound_\.5000_\._\.helloworld\.sample\.svc\.cluster\.local default$'
  note 'answered here: source'; echo "$local_source"
  note 'answered here: destination'; echo "$local_destination"
  # One connection, seen from both of its ends: the source's upstream local address is the destination's downstream remote.
  local upstream
  upstream=$(grep -Eo "cluster\.local $a" <<<"$local_source" | cut -d' ' -f2)
  expect 'the local destination line' "$local_destination" "inbound\|5000\|\| 127\.0\.0\.6:[0-9]+ [0-9.]+:5000 ${upstream//./\\.} outbound_"
}

if wanted 16; then
  step '16-17. The way of a request, from the logs'
  check 'lines of one request at both ends within 60 s' both_logged
  typed "kubectl --context=$C1 -n sample logs -l app=sleep -c istio-proxy --tail=1"
  typed "kubectl --context=$C2 -n sample logs -l app=helloworld -c istio-proxy --tail=1"
  check 'the log lines' logs
fi

if wanted 18; then
  step '18. proxy-status'
  for c in "$C1" "$C2"; do
    kept "$temporary/status" "carrick proxy-status --context=$c"
    expect 'the east-west gateway has no routes' "$(cat "$temporary/status")" \
      "^istio-eastwestgateway-[^ ]+\.istio-system +$c +SYNCED +SYNCED +SYNCED +NOT SENT +NOT SENT +istiod-"
  done
fi

endpoints() { carrick proxy-config endpoints deploy/sleep.sample --context="$1" --cluster 'outbound|5000||helloworld.sample.svc.cluster.local' "${@:2}"; }
endpoint_count() { local out; out=$(endpoints "$1"); [ "$(grep -c HEALTHY <<<"$out")" -eq "$2" ] || { echo "$out"; return 1; }; }
route_file() { grep -q 'helloworld.sample.svc.cluster.local:5000/\*' route.yaml && grep -q 'retriable-status-codes' route.yaml; }

if wanted 19; then
  step '19. proxy-config'
  typed "carrick proxy-config route deploy/sleep.sample --context=$C1 --name 5000"
  typed "carrick proxy-config route deploy/sleep.sample --context=$C1 --name 5000 -o yaml > route.yaml"
  check 'the route as YAML' route_file
  typed "carrick proxy-config endpoints deploy/sleep.sample --context=$C1 --cluster 'outbound|5000||helloworld.sample.svc.cluster.local' -o wide"
  check 'two endpoints: the local pod and the other gateway' endpoint_count "$C1" 2
fi

behind_gateway() { # N: both pods of the other cluster answer, through one endpoint
  local out
  out=$(counted "$C1" "$1" || true)
  echo "$out"
  has "$out" 'v2 [0-9]+ \(2 pods\), failed 0'
}

# passed: what the other cluster's gateway has logged of a connection that it passed on: the pod that it
# chose, by which name, and the peer. A connection is logged at its end, as when a pod goes.
passed() {
  local name='outbound_\.5000_\._\.helloworld\.sample\.svc\.cluster\.local' a='[0-9.]+:[0-9]+'
  kube "$C2" -n istio-system logs -l istio=eastwestgateway --tail=500 |
    grep -E "^\[[^]]+\] \"- - -\" 0 .* \"[0-9.]+:5000\" $name $a [0-9.]+:15443 $a $name -\$" | tail -1 | grep .
}

if wanted 20; then
  step '20. More pods'
  typed "kubectl --context=$C2 -n sample scale deploy helloworld-v2 --replicas=2"
  ready "$C2" sample deploy/helloworld-v2
  until_true 60 'both pods behind the gateway answer' behind_gateway 20
  check 'still one remote endpoint' endpoint_count "$C1" 2
  typed "carrick proxy-config endpoints deploy/sleep.sample --context=$C1 --cluster 'outbound|5000||helloworld.sample.svc.cluster.local' -o wide"
  check 'all requests are answered, by both pods' behind_gateway "$REQUESTS"
  typed "kubectl --context=$C1 -n sample scale deploy helloworld-v1 --replicas=2"
  ready "$C1" sample deploy/helloworld-v1
  until_true 60 'one more local endpoint' endpoint_count "$C1" 3
  typed "kubectl --context=$C1 -n sample scale deploy helloworld-v1 --replicas=1"
  typed "kubectl --context=$C2 -n sample scale deploy helloworld-v2 --replicas=1"
  until_true 60 'a line of the other gateway, of a connection to the pod that went' passed
  check 'the line of the gateway' passed
fi

if wanted 21; then
  step '21. Upgrade'
  typed "carrick upgrade --context=$C1 --context=$C2 -y"
  check 'both versions still answer' both "$C1"
fi

gone() { ! kube "$1" get ns "$2" >/dev/null 2>&1; }
left_over() { # CONTEXT
  local left
  left=$(kube "$1" get crd,clusterrole,clusterrolebinding,mutatingwebhookconfiguration,validatingwebhookconfiguration -o name | grep -iE 'istio|carrick')$(kube "$1" get cm -A -o name | grep istio-ca)
  [ -z "$left" ] || { echo "left in $1: $left"; return 1; }
  kube "$1" get ns sample >/dev/null || { echo 'the namespace sample has to stay'; return 1; }
  kube "$1" -n metallb-system get ipaddresspool first-pool >/dev/null || { echo 'the pool has to stay'; return 1; }
}

if wanted 22; then
  step '22. Uninstall'
  for c in "$C1" "$C2"; do
    typed "carrick uninstall --context=$c -y --purge"
    typed "kubectl --context=$c delete ns istio-system"
    until_true 90 "namespace istio-system is gone from $c" gone "$c" istio-system
    typed "carrick uninstall --context=$c --verify"
    check "what is left in $c" left_over "$c"
  done
fi
