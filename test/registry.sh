#!/bin/bash
# A registry of one's own: pushes the release to one in the lab that asks for a password, and
# installs the mesh of the guide from there alone. Nodes that hold none of the images pull them.
#
#   KUBECONFIG=… test/registry.sh RUN-ID      (a lab of two clusters, without images of Carrick)
set -uo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 1
. test/lib.sh
lab() { bin/lab --run-id "$1" "${@:2}"; }
id=${1:?usage: registry.sh RUN-ID}
version=$(cat VERSION)
registry=10.10.50.200:5000 # on client1
hub=$registry/mesh
work=$(mktemp -d)
trap 'kill $serving 2>/dev/null; rm -rf "$work"' EXIT
serving=''

step 'A registry that asks for a password'
CGO_ENABLED=0 go build -trimpath -o "$work/registry" ./test/registry || fail 'building the registry'
lab "$id" exec client1 "$work/registry" "$registry" mesh:sesame >"$work/log" 2>&1 &
serving=$!
answers() { [ "$(lab "$id" exec client1 curl -s -o /dev/null -w '%{http_code}' http://$registry/v2/)" = 401 ]; }
until_true 20 'the registry answers' answers
for c in cluster1 cluster2; do
  for node in $(kubectl --context=$c get node -o name | cut -d/ -f2); do
    # containerd speaks plain HTTP only where it is told to.
    lab "$id" exec "$node" sh -c "mkdir -p /etc/containerd/certs.d/$registry && echo 'server = \"http://$registry\"' >/etc/containerd/certs.d/$registry/hosts.toml" || fail "the settings of $node"
  done
done

step 'Push'
push() { lab "$id" exec client1 env HOME="$work" DOCKER_CONFIG="$work" "$top/bin/carrick" image push "$hub" --insecure --archive dist/images/carrick.tar; }
if out=$(push 2>&1); then fail 'pushed without a password'; fi
expect 'without a password' "$out" 'log in first \(docker login '
kubectl --context=cluster1 create secret docker-registry x --dry-run=client -o jsonpath='{.data.\.dockerconfigjson}' \
  --docker-server=$registry --docker-username=mesh --docker-password=sesame | base64 -d >"$work/config.json" || fail 'the login'
push || fail 'the push'

step 'The guide, from that registry'
for c in cluster1 cluster2; do
  for ns in metallb-system istio-system sample; do
    kubectl --context=$c create namespace $ns || fail "namespace $ns"
    kubectl --context=$c -n $ns create secret docker-registry regcred --docker-server=$registry --docker-username=mesh --docker-password=sesame || fail 'the pull secret'
  done
done
export HUB_ARGS="--set hub=$hub --set tag=$version --set values.global.imagePullSecrets[0]=regcred --set values.global.imagePullPolicy=Always"
STEPS=1-14 test/walkthrough.sh cluster1 cluster2 || fail 'the guide'
step 'Where the images came from'
for c in cluster1 cluster2; do
  images=$(kubectl --context=$c get pod -A -o jsonpath='{range .items[*]}{range .status.containerStatuses[*]}{.image}{"\n"}{end}{range .status.initContainerStatuses[*]}{.image}{"\n"}{end}{end}' | grep '/carrick' | sort | uniq -c)
  echo "$c: $images"
  has "$images" "$hub/carrick:$version" || fail "no image of $hub in $c"
  has "$images" carrickmesh && fail "an image of another registry in $c"
done
step 'the registry: passed'
