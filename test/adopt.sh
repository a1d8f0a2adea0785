#!/bin/bash
# Genuine Istio in the first cluster, Carrick in the second: they share a mesh. Then Carrick takes
# the first over, under load: nothing may be lost.
#
#   KUBECONFIG=… ISTIO=FOLDER test/adopt.sh CONTEXT1 CONTEXT2
#
# ISTIO is what tools/istio.sh made; the nodes have its images. Sidecars of Istio's run vanilla Envoy,
# which lacks Istio's own filters: metadata exchange, ALPN filter and telemetry are therefore off.
# The other variables are those of walkthrough.sh.
set -uo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 1
. test/lib.sh
C1=${1:?usage: adopt.sh CONTEXT1 CONTEXT2} C2=${2:?usage: adopt.sh CONTEXT1 CONTEXT2}
ISTIO=${ISTIO:?folder that tools/istio.sh made}
CURL1=${CURL1:-curl}
work=$(mktemp -d)
trap 'touch "$work/stop"; kill $(jobs -p) 2>/dev/null; wait; rm -rf "$work"' EXIT
istioctl() { command "$ISTIO/istioctl" "$@"; }
kube() { kubectl --context="$1" "${@:2}"; }
ready() { until_true 180 "$3 of namespace $2 in $1" kube "$1" -n "$2" rollout status --timeout=1s "$3"; }
guide() { STEPS=$1 test/walkthrough.sh "$C1" "$C2" || fail "the guide, steps $1"; }
address() { kube "$1" -n istio-system get service "$2" -o jsonpath='{.status.loadBalancer.ingress[0].ip}'; }
has_address() { [ -n "$(address "$1" "$2")" ]; }
samples=$(cd tools/istio && go list -m -f '{{.Dir}}' istio.io/istio)/samples

operator() { # CLUSTER NETWORK
  cat <<EOF
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
spec:
  meshConfig:
    accessLogFile: /dev/stdout
  values:
    global:
      meshID: mesh1
      multiCluster:
        clusterName: $1
      network: $2
EOF
}
cat >"$work/vanilla.yaml" <<'EOF'
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
spec:
  values:
    global: {imagePullPolicy: IfNotPresent}
    telemetry: {enabled: false}
    pilot:
      env: {PILOT_ENABLE_METADATA_EXCHANGE: false, PILOT_ENABLE_ALPN_FILTER: false, PILOT_ENABLE_TELEMETRY_LABEL: false}
EOF

step 'The load balancer and the CA'
guide 2-2
if ! kube "$C2" -n istio-system get secret cacerts >/dev/null 2>&1; then
  mkdir "$work/certs"
  (cd "$work/certs" && run carrick ca root) || exit 1
  for c in "$C1" "$C2"; do
    (cd "$work/certs" && run carrick ca intermediate "$c" && run carrick ca install "$c" --context="$c") || exit 1
  done
fi

step "Istio $(cat "$ISTIO/version") in $C1"
kube "$C1" label namespace istio-system topology.istio.io/network=network1 --overwrite
operator "$C1" network1 >"$work/1.yaml"
run istioctl install --context="$C1" -y -f "$work/1.yaml" -f "$work/vanilla.yaml"
bash "$samples/multicluster/gen-eastwest-gateway.sh" --network network1 >"$work/east.yaml" || fail 'gen-eastwest-gateway.sh'
run istioctl install --context="$C1" -y -f "$work/east.yaml" -f "$work/1.yaml" -f "$work/vanilla.yaml"
run kubectl --context="$C1" apply -n istio-system -f "$samples/multicluster/expose-services.yaml"

step "Carrick in $C2"
operator "$C2" network2 >"$work/2.yaml"
run carrick install --context="$C2" -y -f "$work/2.yaml"
samples/multicluster/gen-eastwest-gateway.sh --mesh mesh1 --cluster "$C2" --network network2 | carrick install --context="$C2" -y -f - || fail 'the east-west gateway'
run kubectl --context="$C2" apply -n istio-system -f samples/multicluster/expose-services.yaml
for c in "$C1" "$C2"; do until_true 60 'an address of the east-west gateway' has_address "$c" istio-eastwestgateway; done

step 'Remote secrets: each made by the other side'
istioctl create-remote-secret --context="$C1" --name="$C1" --server "$(kubectl config view -o jsonpath="{.clusters[?(@.name=='$C1')].cluster.server}")" | kube "$C2" apply -f - || fail 'remote secret of Istio'
carrick create-remote-secret --context="$C2" --name="$C2" | kube "$C1" apply -f - || fail 'remote secret of Carrick'

step 'One name, two meshes'
guide 13-13
answers() { kube "$1" -n sample exec deploy/sleep -c sleep -- sh -c 'i=0; while [ $i -lt 12 ]; do curl -sS --max-time 5 helloworld.sample:5000/hello; i=$((i+1)); done'; }
shared() { local out; out=$(answers "$C2"); has "$out" 'version: v1' && has "$out" 'version: v2'; }
until_true 90 "both versions from $C2" shared
answers "$C2"
run istioctl remote-clusters --context="$C1"
for c in "$C1" "$C2"; do
  kube "$c" -n sample get pod -l app=sleep -o jsonpath='{range .items[*]}{.spec.initContainers[*].image}{" "}{.spec.containers[*].image}{"\n"}{end}'
done
kube "$C1" -n sample get pod -l app=helloworld -o jsonpath='{..image}' | grep -q istio/proxyv2 || fail "the sidecars of $C1 are not Istio's"

step 'carrick install refuses'
if out=$(carrick install --context="$C1" -y -f "$work/1.yaml" 2>&1); then fail 'install over Istio is not refused'; fi
echo "$out"
expect 'install' "$out" 'Istio: Deployment istio-system/istiod, image docker.io/istio/pilot:.*--adopt'

step 'What protects the sample of the first cluster'
# Namespace shop may not call the sample, and a bad token is refused.
kube "$C1" create namespace shop
kube "$C1" label namespace shop istio-injection=enabled
kube "$C1" apply -n shop -f samples/sleep/sleep.yaml || fail 'sleep in namespace shop'
ready "$C1" shop deploy/sleep
jwks=$(tr -d '\n' <"$samples/../security/tools/jwt/samples/jwks.json") || fail "Istio's sample of a key set"
kube "$C1" apply -f - <<EOF || fail 'the objects that adoption has to name'
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-shop, namespace: sample}
spec:
  action: DENY
  selector: {matchLabels: {app: helloworld}}
  rules: [{from: [{source: {namespaces: [shop]}}]}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: sample}
spec:
  selector: {matchLabels: {app: helloworld}}
  jwtRules:
  - issuer: nobody@example.com
    jwks: '$jwks'
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: shop}
spec:
  egress: [{hosts: ["./*", "sample/*", "istio-system/*"]}]
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: shop}
spec:
  hosts: [outside.example.com]
  location: MESH_EXTERNAL
  resolution: NONE
  ports: [{number: 80, name: http, protocol: HTTP}]
EOF
# code NAMESPACE [HEADER]: the status that the sample gives a sleep pod of the first cluster.
code() { kube "$C1" -n "$1" exec deploy/sleep -c sleep -- curl -s -o /dev/null --max-time 5 -w '%{http_code}' ${2:+-H "$2"} helloworld.sample:5000/hello; }
# some CODE NAMESPACE [HEADER]: whether one of several requests is answered so. Half of the sample's pods are in
# the other cluster, which has none of these objects.
some() { local i; for i in 1 2 3 4 5 6 7 8; do [ "$(code "${@:2}")" != "$1" ] || return 0; done; return 1; }
until_true 60 'Istio denies requests of namespace shop' some 403 shop
until_true 60 'Istio refuses a bad token' some 401 sample 'Authorization: Bearer nonsense'

step 'carrick install --adopt refuses to end that'
for more in '' --dry-run; do
  if out=$(carrick install --context="$C1" --adopt -y $more 2>&1); then fail "install --adopt $more goes on, though protections would end"; fi
  for line in 'Error \(AuthorizationPolicy sample/deny-shop\) .*NO effect' 'Error \(RequestAuthentication sample/jwt\) .*NO effect' \
    'Error \(Sidecar shop/default\) .*NO effect' 'Warning \(ServiceEntry shop/outside\) .*NO effect' \
    '--accept-unenforced AuthorizationPolicy,RequestAuthentication,Sidecar'; do
    expect "install --adopt $more" "$out" "$line"
  done
done
echo "$out"
if out=$(carrick install --context="$C1" --adopt -y --accept-unenforced AuthorizationPolicy,Sidecar 2>&1); then fail 'a kind that was not given up does not count'; fi
expect 'install --adopt' "$out" 'would have no effect: 1 RequestAuthentication;'
has "$(kube "$C1" -n istio-system get deploy istiod -o jsonpath='{..image}')" 'istio/pilot' || fail 'a refused adoption has changed istiod'
some 403 shop || fail 'a refused adoption has ended what Istio enforced'
accept=--accept-unenforced=AuthorizationPolicy,RequestAuthentication,Sidecar

# Load: from a sleep pod of each cluster to helloworld, and from the LAN through the ingress gateway; for a quarter
# of an hour at most.
load() { # CONTEXT FILE
  kube "$1" -n sample exec deploy/sleep -c sleep -- sh -c 'read -r now _ </proc/uptime; end=$((${now%.*} + 900))
    while [ ! -e /tmp/stop ] && read -r now _ </proc/uptime && [ ${now%.*} -lt $end ]; do curl -s -o /dev/null --max-time 15 -w "%{http_code} %{time_total} %{errormsg}\n" helloworld.sample:5000/hello; done' >"$2"
}
kube "$C1" apply -n sample -f - <<'EOF' || fail 'the gateway of helloworld'
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: hello}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: hello}
spec:
  hosts: ["*"]
  gateways: [hello]
  http: [{route: [{destination: {host: helloworld, port: {number: 5000}}}]}]
EOF
ingress=$(address "$C1" istio-ingressgateway) east=$(address "$C1" istio-eastwestgateway)
through() { [ "$($CURL1 -s -o /dev/null --max-time 5 -w '%{http_code}' "http://$ingress/hello")" = 200 ]; }
until_true 60 "http://$ingress/hello answers" through
: >"$work/ingress"
load "$C1" "$work/from-$C1" & load "$C2" "$work/from-$C2" &
(end=$((SECONDS + 900)); while [ ! -e "$work/stop" ] && [ $SECONDS -lt $end ]; do $CURL1 -s -o /dev/null --max-time 15 -w '%{http_code} %{time_total} %{errormsg}\n' "http://$ingress/hello" >>"$work/ingress"; done) &
until_true 30 'load' test -s "$work/ingress"
old=$(kube "$C1" -n sample get pod -o jsonpath='{.items[*].metadata.name}')

step "carrick install --adopt in $C1, under load"
run carrick install --context="$C1" --adopt -y $accept
run carrick install --context="$C1" --adopt -y $accept -f <(samples/multicluster/gen-eastwest-gateway.sh --mesh mesh1 --cluster "$C1" --network network1)
settled() { carrick proxy-status --context="$C1" | awk 'NR > 1 && /sample/ {n++} NR > 1 && /STALE|ERROR/ {bad = 1} END {exit !(n >= 2 && !bad)}'; }
until_true 90 "Istio's sidecars are served by Carrick" settled
run carrick proxy-status --context="$C1"
[ "$(kube "$C1" -n sample get pod -o jsonpath='{.items[*].metadata.name}')" = "$old" ] || fail 'a pod of the sample was replaced'
[ "$(address "$C1" istio-ingressgateway)" = "$ingress" ] && [ "$(address "$C1" istio-eastwestgateway)" = "$east" ] || fail 'an address changed'
expect 'MeshConfig' "$(kube "$C1" -n istio-system get cm istio -o jsonpath='{.data.mesh}')" 'accessLogFile: /dev/stdout'
has "$(kube "$C1" -n istio-system get deploy -o jsonpath='{..image}')" 'istio/(pilot|proxyv2)' && fail "Istio's images still run in istio-system"
guide 14-14

step 'What has no effect says so'
told() { has "$(kube "$C1" -n "$2" get "$1" "$3" -o jsonpath='{.status.conditions[?(@.type=="Reconciled")].status} {.status.conditions[?(@.type=="Reconciled")].reason}')" 'False NotImplemented'; }
until_true 60 'the condition of the AuthorizationPolicy' told authorizationpolicies.security.istio.io sample deny-shop
until_true 60 'the condition of the RequestAuthentication' told requestauthentications.security.istio.io sample jwt
until_true 60 'the condition of the Sidecar' told sidecars.networking.istio.io shop default
until_true 60 'the condition of the ServiceEntry' told serviceentries.networking.istio.io shop outside
expect 'events' "$(kube "$C1" -n sample get events --field-selector reason=NotImplemented)" 'AuthorizationPolicy|authorizationpolicy'
if out=$(carrick analyze --context="$C1" -A 2>&1); then fail 'analyze finds no Error'; fi
expect 'analyze' "$out" 'Error \(AuthorizationPolicy sample/deny-shop .*NO effect'
if some 403 shop; then fail 'an AuthorizationPolicy has an effect, though it is said to have none'; fi
# What follows goes on without them.
run kubectl --context="$C1" -n sample delete authorizationpolicies.security.istio.io/deny-shop requestauthentications.security.istio.io/jwt
run kubectl --context="$C1" delete namespace shop

step "istioctl, against Carrick"
# Istio's sidecars have not rolled yet, and istioctl says so.
ANALYZE='Warning \[IST0158\] .*sleep-' test/istioctl.sh "$C1" "$C2" || fail 'istioctl'

step "Istio's sidecars roll"
run kubectl --context="$C1" -n sample rollout restart deploy/helloworld-v1
ready "$C1" sample deploy/helloworld-v1
rolled() { ! has "$(kube "$C1" -n sample get pod -l app=helloworld -o jsonpath='{..image}')" 'istio/proxyv2'; }
until_true 60 "Istio's sidecar ends" rolled
guide 14-14
touch "$work/stop"
for c in "$C1" "$C2"; do kube "$c" -n sample exec deploy/sleep -c sleep -- touch /tmp/stop; done
wait
lost=0
for f in "from-$C1" "from-$C2" ingress; do
  awk -v f="$f" '{n++; if ($1 != 200) lost++; else if ($2 > 1) slow++} END {printf "%s: %d requests, %d lost, %d slower than 1 s\n", f, n, lost, slow; exit lost > 0}' "$work/$f" || { lost=1; grep -v '^200 ' "$work/$f" | sort | uniq -c | head -5; }
done
[ $lost -eq 0 ] || fail 'requests were lost'
step 'adopted'
