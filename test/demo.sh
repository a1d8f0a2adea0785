#!/bin/bash
# make demo: two clusters of the lab, the guide on them, and what to try next. Leaves all running.
set -uo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 1
. test/lib.sh
id=${1:-demo}
lab() { bin/lab --run-id "$id" "$@"; }

# The commands' programs live for a moment: it is not worth their while to collect garbage.
export GOGC=400

# loaded: whether both nodes have the images. One that has not started is passed over.
loaded() {
  local out
  out=$(lab image load dist/images/carrick.tar dist/images/samples.tar) && has "$out" 'into 2 nodes'
}

# The clusters come up while the images are made and loaded.
step 'Two Kubernetes clusters; images'
images=$(mktemp)
job=''
trap 'kill $job 2>/dev/null; rm -f "$images"' EXIT
{
  go run -buildvcs=false ./tools/image --version "$(cat VERSION)" --bin bin --out dist/images --made dist/images/made.json || exit 1
  until_true 120 'two nodes that take the images' loaded
} >"$images" 2>&1 &
job=$!
lab up || fail 'the lab did not come up'
wait $job || { cat "$images"; fail 'the images'; }
job=''
cat "$images"
KUBECONFIG=$(lab kubeconfig) || fail 'no kubeconfig'
export KUBECONFIG
ln -sf "$(bin/lab build)/bin/kubectl" bin/kubectl
export PATH=$top/bin:$PATH

export CURL1="$top/bin/lab --run-id $id exec client1 curl" CURL2="$top/bin/lab --run-id $id exec client2 curl"
CA=carrick KEY=p256 test/walkthrough.sh cluster1 cluster2 || exit 1

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
