#!/bin/bash
# Genuine istioctl against Carrick: the verbs that read a mesh, on the guide's sample.
#
#   KUBECONFIG=… ISTIO=FOLDER test/istioctl.sh CONTEXT
#
# ISTIO is what tools/istio.sh made. Not typed here yet: kube-inject and admin log, which ask the
# webhook and ControlZ of the control plane (tested in inject and cmd/carrick), and analyze, which asks the
# API servers of all remote secrets unless --remote-contexts names others.
set -uo pipefail
. "$(dirname "$0")/lib.sh"
C=${1:?usage: istioctl.sh CONTEXT}
ISTIO=${ISTIO:?folder that tools/istio.sh made}
pod=$(kubectl --context="$C" -n sample get pod -l app=sleep -o jsonpath='{.items[0].metadata.name}').sample
# says PATTERN ARGS…: the verb succeeds and prints a line like that.
says() {
  local pattern=$1 out
  shift
  shown istioctl "$@"
  out=$("$ISTIO/istioctl" --context="$C" "$@" 2>&1) || { echo "$out" | tail -5; fail "exit code of: istioctl $*"; }
  expect "istioctl $*" "$out" "$pattern"
  grep -E -m1 -- "$pattern" <<<"$out" | cut -c1-200
}
says 'control plane version: [0-9]' version
says "^$pod .* istiod-.* [0-9.]+.*CDS,LDS,EDS,RDS" proxy-status
says "^$C .*synced" remote-clusters
says 'helloworld.sample.svc.cluster.local +5000 .*outbound +EDS' proxy-config cluster "$pod"
says '0\.0\.0\.0 +5000 .*Route: 5000' proxy-config listener "$pod"
says '^5000 +helloworld.sample.svc.cluster.local:5000' proxy-config route "$pod"
says '5000\|\|helloworld' proxy-config endpoint "$pod" --cluster 'outbound|5000||helloworld.sample.svc.cluster.local'
says '^default +Cert Chain +ACTIVE +true' proxy-config secret "$pod"
says '"id": "sidecar~' proxy-config bootstrap "$pod"
says 'No issues found|installed|Info' x precheck
says 'Workload mTLS mode: PERMISSIVE' x describe pod "$pod"
says 'istio/multiCluster: "true"' create-remote-secret --name="$C"
says '"proxy": ' x internal-debug syncz
