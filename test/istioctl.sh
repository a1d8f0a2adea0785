#!/bin/bash
# Genuine istioctl against Carrick: the verbs that read a mesh, inject, and turn logs up, on the guide's
# sample.
#
#   KUBECONFIG=… ISTIO=FOLDER test/istioctl.sh CONTEXT [PEER]
#
# ISTIO is what tools/istio.sh made. PEER is the context of the other cluster: analyze asks the API
# servers of all remote secrets, at addresses that only the clusters may reach, unless it is told
# contexts to ask in their place. ANALYZE is what it says of the sample as it is, by default that there is
# nothing.
#
# Left out: x metrics and the dashboards of others need Prometheus, Grafana and so on; bug-report collects
# what is read here; install, upgrade and waypoint are Istio's own charts; ztunnel-config is ambient mode;
# proxy-config ecds fails where there is no such resource, with Envoy too; x wait watches distribution status,
# which istiod itself no longer has on by default; admin log --stack-trace-level: Carrick logs no stack traces.
set -uo pipefail
. "$(dirname "$0")/lib.sh"
C=${1:?usage: istioctl.sh CONTEXT [PEER]}
PEER=${2:-}
ISTIO=${ISTIO:?folder that tools/istio.sh made}
pod=$(kubectl --context="$C" -n sample get pod -l app=sleep -o jsonpath='{.items[0].metadata.name}').sample
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT
istioctl() { "$ISTIO/istioctl" --context="$C" "$@"; }
# says PATTERN ARGS…: the verb succeeds and prints a line like that.
says() {
  local pattern=$1 out
  shift
  shown istioctl "$@"
  out=$(istioctl "$@" 2>&1) || { echo "$out" | tail -5; fail "exit code of: istioctl $*"; }
  expect "istioctl $*" "$out" "$pattern"
  grep -E -m1 -- "$pattern" <<<"$out" | cut -c1-200
}
says 'control plane version: [0-9]' version
says "^$pod .* istiod-.* [0-9.]+.*CDS,LDS,EDS,RDS" proxy-status
says 'Clusters Match' proxy-status "$pod"
says "^$C .*synced" remote-clusters
says 'helloworld.sample.svc.cluster.local +5000 .*outbound +EDS' proxy-config cluster "$pod"
says '0\.0\.0\.0 +5000 .*Route: 5000' proxy-config listener "$pod"
says '^5000 +helloworld.sample.svc.cluster.local:5000' proxy-config route "$pod"
says '5000\|\|helloworld' proxy-config endpoint "$pod" --cluster 'outbound|5000||helloworld.sample.svc.cluster.local'
says '^default +Cert Chain +ACTIVE +true' proxy-config secret "$pod"
says '"name": "ROOTCA"' proxy-config secret "$pod" -o json
says '"id": "sidecar~' proxy-config bootstrap "$pod"
says '5000 .*helloworld.sample.svc.cluster.local:5000' proxy-config all "$pod"
says 'level|LOGGER|logger' proxy-config log "$pod"
says 'cluster\.|server\.' experimental envoy-stats "$pod"
says 'ACTION +AuthorizationPolicy' experimental authz check "$pod"
says 'No issues found|installed|Info' x precheck
says 'Workload mTLS mode: PERMISSIVE' x describe pod "$pod"
says 'istio-sidecar-injector +default .*✔.* Namespace label istio-injection=enabled matches' x check-inject "$pod"
says '^sample +istio-sidecar-injector +default' x injector list
says 'istio/multiCluster: "true"' create-remote-secret --name="$C"
says '"proxy": ' x internal-debug syncz
says 'no Istio revision tag|TAG' tag list
says 'validation succeed|valid' validate -f "$(dirname "$0")/../samples/bookinfo/networking/bookinfo-gateway.yaml"
# The webhook adds the sidecar, by port forwarding.
says 'image: .*carrick' kube-inject -f "$(dirname "$0")/../samples/sleep/sleep.yaml"
# A route to a host that does not exist is found, and nothing when it is gone.
analyze=(analyze -n sample)
[ -z "$PEER" ] || analyze+=("--remote-contexts=$PEER")
kubectl --context="$C" -n sample apply -f - >/dev/null <<'YAML'
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: istioctl-test}
spec:
  hosts: [istioctl-test.example.com]
  http: [{route: [{destination: {host: nobody}}]}]
YAML
shown istioctl "${analyze[@]}"
out=$(istioctl "${analyze[@]}" 2>&1) && fail 'analyze finds nothing in a route to nobody'
expect 'istioctl analyze' "$out" 'IST0101.*VirtualService (sample/)?istioctl-test.*nobody'
grep -m1 IST0101 <<<"$out"
kubectl --context="$C" -n sample delete virtualservice istioctl-test >/dev/null
says "${ANALYZE:-No validation issues found}" "${analyze[@]}"
# The control plane's log, by scope.
says '^ads .* info +none' admin log
istioctl admin log --level injection:debug || fail 'istioctl admin log --level injection:debug'
says '^injection .* debug +none' admin log
says 'image: .*carrick' kube-inject -f "$(dirname "$0")/../samples/sleep/sleep.yaml"
injected() { has "$(kubectl --context="$C" -n istio-system logs deploy/istiod --since=1m)" "debug.*injected"; }
until_true 20 "the control plane's log says more" injected
istioctl admin log --reset || fail 'istioctl admin log --reset'
says '^injection .* info +none' admin log
# The proxy's pages, by port forwarding.
istioctl dashboard envoy "$pod" --browser=false >"$work/dashboard" 2>&1 &
until_true 20 'istioctl dashboard envoy names an address' grep -q 'http://localhost:[0-9]' "$work/dashboard"
expect 'the dashboard of a proxy' "$(curl -sS "$(grep -o -m1 'http://localhost:[0-9]*' "$work/dashboard")/config_dump")" 'outbound\|5000\|\|helloworld'
