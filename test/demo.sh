#!/bin/bash
# make demo: two clusters of the lab, the guide on them, and what to try next. Leaves all running.
set -uo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 1
. test/lib.sh
id=${1:-demo}
lab() { bin/lab --run-id "$id" "$@"; }

step 'Two Kubernetes clusters'
lab up || fail 'the lab did not come up'
KUBECONFIG=$(lab kubeconfig) || fail 'no kubeconfig'
export KUBECONFIG
mkdir -p "$top/bin"
ln -sf "$(bin/lab build)/bin/kube" bin/kubectl
export PATH=$top/bin:$PATH
step 'Images'
lab image load dist/images/carrick.tar dist/images/samples.tar || fail 'the images'

export CURL1="$top/bin/lab --run-id $id exec client1 curl" CURL2="$top/bin/lab --run-id $id exec client2 curl"
test/walkthrough.sh cluster1 cluster2 || exit 1

step 'What to try next'
cat <<EOF
  export KUBECONFIG=$KUBECONFIG PATH=$top/bin:\$PATH
  kubectl --context=cluster1 get pod -A
  kubectl --context=cluster1 -n sample exec deploy/sleep -c sleep -- curl -sS helloworld.sample:5000/hello
  carrick proxy-config endpoints deploy/sleep.sample --context=cluster1 -o wide
  lab --run-id $id wan cut      # the link between the clusters: local answers go on
  lab --run-id $id wan restore
  make demo-down                # removes all of it
EOF
