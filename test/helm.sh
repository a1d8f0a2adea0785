#!/bin/bash
# The charts of `carrick manifest chart` with genuine Helm: installed, changed, removed. In a lab with the
# images and no mesh (see test/all.sh); one cluster is used:
#
#   KUBECONFIG=… HELM=… test/helm.sh CONTEXT
#
# CURL1 is a curl on a host that reaches the load-balancer addresses, which are POOL, FROM-TO.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
cd "$(dirname "$here")" || exit 1
C1=${1:?usage: helm.sh CONTEXT} HELM=${HELM:-helm} CURL1=${CURL1:-curl} POOL=${POOL:-10.10.50.75-10.10.50.90}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HELM_CACHE_HOME=$work/cache HELM_CONFIG_HOME=$work/config HELM_DATA_HOME=$work/data
helm() { "$HELM" --kube-context="$C1" -n istio-system "$@"; }
kube() { kubectl --context="$C1" "$@"; }
ready() { until_true 180 "$2 of namespace $1" kube -n "$1" rollout status --timeout=1s "$2"; }

step 'A load balancer, for the ingress gateway'
run carrick lb install --context="$C1"
sed "s/RANGE/$POOL/" test/testdata/pool.yaml | kube apply -f - || fail 'the pool'

step 'helm install'
run carrick manifest chart -o "$work/charts"
run kubectl --context="$C1" create namespace istio-system
run kubectl --context="$C1" label namespace istio-system topology.istio.io/network=network1
run helm install istio-base "$work/charts/base"
run helm install istiod "$work/charts/istiod" --wait --timeout 4m \
  --set global.meshID=mesh1 --set global.network=network1 --set global.multiCluster.clusterName=cluster1
# --wait: until the Deployment is ready and the Service has an address.
run helm install istio-ingressgateway "$work/charts/gateway" --wait --timeout 4m
run helm list
[ "$(helm list --deployed -q | wc -l)" -eq 3 ] || fail 'not all releases are deployed'

step 'The mesh: a sidecar is injected, requests go through gateway and sidecars'
kube create namespace sample && kube label namespace sample istio-injection=enabled || fail 'namespace sample'
kube apply -n sample -f samples/helloworld/helloworld.yaml -l 'version!=v2' || fail helloworld
kube apply -n sample -f samples/sleep/sleep.yaml || fail sleep
kube apply -n sample -f - <<'Y' || fail 'the route'
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: hello}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: hello}
spec: {hosts: ["*"], gateways: [hello], http: [{route: [{destination: {host: helloworld, port: {number: 5000}}}]}]}
Y
ready sample deploy/helloworld-v1
ready sample deploy/sleep
run kubectl --context="$C1" -n sample get pod
expect 'the sidecar' "$(kube -n sample get pod -l app=sleep)" '^sleep-.* 2/2 +Running'
call() { kube -n sample exec deploy/sleep -c sleep -- curl -sS --max-time 10 helloworld.sample:5000/hello; }
until_true 60 'helloworld answers' call
call
address=$(kube -n istio-system get svc istio-ingressgateway -o jsonpath='{.status.loadBalancer.ingress[0].ip}')
outside() { [ "$($CURL1 -s -o /dev/null --max-time 5 -w '%{http_code}' "http://$address/hello")" = 200 ]; }
until_true 60 "http://$address/hello answers" outside
out=$(carrick proxy-status --context="$C1") || fail 'proxy-status'
echo "$out"
for p in sleep helloworld-v1 istio-ingressgateway; do expect "$p" "$out" "^$p-[^ ]+ +cluster1 +SYNCED +SYNCED +SYNCED +SYNCED "; done

step 'The verbs that ask what is installed'
out=$(carrick eastwest --context="$C1") || fail 'eastwest'
for p in 'meshID: mesh1' 'clusterName: cluster1' 'network: network1'; do expect eastwest "$out" "$p"; done
run carrick analyze -A --context="$C1"

step 'helm upgrade, with the same values and with another'
pods() { kube get pod -A -l 'app in (istiod,istio-ingressgateway,sleep,helloworld)' -o jsonpath='{range .items[*]}{.metadata.uid}{"\n"}{end}' | sort; }
before=$(pods) bundle=$(kube get mutatingwebhookconfiguration istio-sidecar-injector -o jsonpath='{.webhooks[*].clientConfig.caBundle}')
[ -n "$bundle" ] || fail 'the webhook has no caBundle'
run helm upgrade istiod "$work/charts/istiod" --reuse-values --wait
run helm upgrade istio-ingressgateway "$work/charts/gateway" --reuse-values --wait
[ "$(pods)" = "$before" ] || fail 'an upgrade without a change has replaced pods'
logged() { call >/dev/null && kube -n sample logs deploy/sleep -c istio-proxy --tail=20 | grep -q '"GET /hello HTTP/1.1" 200'; }
logged && fail 'the access log is on already'
run helm upgrade istiod "$work/charts/istiod" --reuse-values --set meshConfig.accessLogFile=/dev/stdout --wait
until_true 60 'the access log is on, in running sidecars' logged
run helm upgrade istio-ingressgateway "$work/charts/gateway" --reuse-values --set replicaCount=2 --set autoscaling.enabled=false --wait --timeout 4m
[ "$(kube -n istio-system get deploy istio-ingressgateway -o jsonpath='{.status.readyReplicas}')" = 2 ] || fail 'not two gateways'
[ "$(kube get mutatingwebhookconfiguration istio-sidecar-injector -o jsonpath='{.webhooks[*].clientConfig.caBundle}')" = "$bundle" ] || fail 'the caBundle is another'
[ "$(kube -n istio-system get svc istio-ingressgateway -o jsonpath='{.status.loadBalancer.ingress[0].ip}')" = "$address" ] || fail 'the address is another'
run helm history istiod
run helm rollback istiod 1 --wait
off() { ! kube -n istio-system get cm istio -o jsonpath='{.data.mesh}' | grep -q accessLogFile; }
off || fail 'the rollback left the access log on'

step 'helm uninstall'
run helm uninstall istio-ingressgateway --wait
run helm uninstall istiod --wait
run helm uninstall istio-base --wait
left() { kube get deploy,svc,cm,sa,role,rolebinding,clusterrole,clusterrolebinding,mutatingwebhookconfiguration,validatingwebhookconfiguration,hpa,pdb -A -l app.kubernetes.io/managed-by=Helm -o name; }
[ -z "$(left)" ] || fail "left: $(left)"
out=$(kube -n istio-system get deploy,svc,hpa,pdb -o name) || fail 'what is left'
[ -z "$out" ] || fail "left: $out"
[ -z "$(kube get mutatingwebhookconfiguration,validatingwebhookconfiguration -o name | grep -i istio)" ] || fail 'webhooks are left'
expect 'CRDs stay, and with them what the user wrote' "$(kube get virtualservices -n sample)" '^hello '
step 'Helm: all passed'
