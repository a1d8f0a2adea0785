#!/bin/bash
# make test-all: the guide on each kind of cluster that differs from the lab's usual one, and the time
# in which an address moves when its node dies. Writes docs/tested.md. Labs are up one after another.
#
#   test/all.sh [RUN…]     overlay metallb carrick-lb kubernetes-1.34 iptables distinct upgrade registry dist
#                          scenarios scenarios-envoy verbs mesh helm grpc adopt istioctl (all of them)
#
# Runs that are not asked for keep the line of their last time.
#
# REQUESTS is the length of the curl loop (200). Logs are in dist/all.
set -uo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 1
. test/lib.sh
all=(overlay metallb carrick-lb kubernetes-1.34 iptables distinct upgrade registry dist scenarios scenarios-envoy verbs mesh helm grpc adopt istioctl)
runs=("$@")
[ $# -gt 0 ] || runs=("${all[@]}")
logs=$top/dist/all
mkdir -p "$logs" docs
export PATH=$top/bin:$PATH REQUESTS=${REQUESTS:-200}
id=all
lab() { bin/lab --run-id $id "$@"; }
kube() { kubectl --context="$1" "${@:2}"; }
trap 'lab down >/dev/null 2>&1' EXIT

# start LAB-ARGS…: a lab with the images.
start() {
  started "$@"
  lab image load dist/images/carrick.tar dist/images/samples.tar || fail 'the images'
}
# started LAB-ARGS…: a lab without images.
started() {
  lab up "$@" || fail 'the lab did not come up'
  KUBECONFIG=$(lab kubeconfig)
  export KUBECONFIG
  ln -sf "$(bin/lab build)/bin/kubectl" bin/kubectl
  export CURL1="$top/bin/lab --run-id $id exec client1 curl" CURL2="$top/bin/lab --run-id $id exec client2 curl"
}
guide() { test/walkthrough.sh cluster1 cluster2 || fail 'the guide'; }
ready() { until_true 180 "$3 of namespace $2 in $1" kube "$1" -n "$2" rollout status --timeout=1s "$3"; }

# large_bodies: 4 MiB down and up, from a pod of cluster1 to one of cluster2, through the gateway.
large_bodies() {
  local c got sent
  for c in cluster1 cluster2; do kube $c apply -n sample -f test/testdata/large.yaml || fail 'the server of large bodies'; done
  kube cluster1 -n sample scale deploy large --replicas=0
  ready cluster2 sample deploy/large
  in_sleep() { kube cluster1 -n sample exec deploy/sleep -c sleep -- sh -c "$1"; }
  until_true 60 'the server of large bodies answers' in_sleep 'curl -sSf -o /dev/null --max-time 10 large.sample:8080/small'
  got=$(in_sleep 'curl -sS --max-time 60 large.sample:8080/large | wc -c')
  sent=$(in_sleep 'head -c 4194304 /dev/zero | curl -sS --max-time 60 --data-binary @- large.sample:8080/cgi-bin/count')
  [ "$got" -eq 4194304 ] && [ "$sent" -eq 4194304 ] || fail "large bodies: $got bytes came, $sent arrived, of 4194304"
  result "4 MiB through the gateway both ways"
}

# result TEXT: what a run has measured, for the table.
result() { echo "$*" | tee -a "$measured"; }

# takeover LABEL: takes the power of the node that answers for an address, and measures how long the address is silent.
takeover() {
  local out=$logs/takeover.$1 ip node load
  kube cluster1 create namespace takeover
  kube cluster1 -n takeover apply -f test/testdata/takeover.yaml
  ready cluster1 takeover ds/web
  address() { ip=$(kube cluster1 -n takeover get svc web -o jsonpath='{.status.loadBalancer.ingress[0].ip}'); [ -n "$ip" ]; }
  until_true 60 'an address' address
  address
  answers() { $CURL1 -s -o /dev/null --max-time 1 "http://$ip/"; }
  until_true 60 "http://$ip/ answers" answers
  # answering: the node whose hardware address client1 has for the address; it ends in the node's own last byte.
  answering() {
    local n
    n=$((16#$(lab exec client1 ip neigh show "$ip" | sed -n 's/.*lladdr [0-9a-f:]*:\([0-9a-f]*\).*/\1/p') - 10))
    [ $n -eq 0 ] && echo cluster1 || echo cluster1-w$n
  }
  node=$(answering)
  note "$ip is answered for by $node"
  # The control plane must live on, and with it the answer to what happened.
  if [ "$node" = cluster1 ]; then
    kube cluster1 label node cluster1 node.kubernetes.io/exclude-from-external-load-balancers=true --overwrite
    kube cluster1 taint node cluster1 takeover=no:NoSchedule
    kube cluster1 -n takeover delete pod --field-selector=spec.nodeName=cluster1 --wait=false
    moved() { answers && [ "$(answering)" != cluster1 ]; }
    until_true 60 'the address leaves the control plane' moved
    node=$(answering)
  fi
  : >"$out"
  lab exec client1 sh -c "end=\$((\$(date +%s) + 90)); while [ \$(date +%s) -lt \$end ]; do c=\$(curl -s -o /dev/null --max-time 0.5 -w '%{http_code}' http://$ip/); echo \$(date +%s.%N) \$c; sleep 0.1; done" >"$out" &
  load=$! # until_true has processes of its own
  until_true 20 'requests' test -s "$out"
  date +%s.%N >"$out.stopped"
  lab node stop "$node" || fail "node stop $node"
  wait $load
  awk -v t="$(cat "$out.stopped")" '$1 < t {next} $2 != 200 {bad = 1; again = 0} $2 == 200 && bad && !again {again = $1}
    END {printf "%.1f\n", again ? again - t : 0}' "$out" >"$out.seconds"
  [ "$(tail -1 "$out" | cut -d' ' -f2)" = 200 ] || fail "http://$ip/ did not answer again within 90 s"
  [ "$(cat "$out.seconds")" != 0.0 ] || fail "no request failed when $node died: it did not serve http://$ip/"
  result "address answered again $(cat "$out.seconds") s after its node $node died"
}

pools() {
  sed "s/RANGE/$2/" test/testdata/pool.yaml | kube "$1" apply -f -
}

metallb() {
  local m=tools/metallb c
  (cd $m && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$logs/metallb/" go.universe.tf/metallb/controller go.universe.tf/metallb/speaker) || fail 'building MetalLB'
  for c in controller speaker; do
    bin/lab image build -add "$logs/metallb/$c:/$c" -o "$logs/metallb/$c.tar" quay.io/metallb/$c:v0.13.12 /$c || fail "image of $c"
  done
  lab image load "$logs"/metallb/*.tar || fail 'the images of MetalLB'
  for c in cluster1 cluster2; do
    kube $c apply -f "$(cd $m && go list -m -f '{{.Dir}}' go.universe.tf/metallb)/config/manifests/metallb-native.yaml" || fail 'the manifest of MetalLB'
  done
  for c in cluster1 cluster2; do
    ready $c metallb-system deploy/controller
    ready $c metallb-system ds/speaker
    range=10.10.50.75-10.10.50.90
    [ $c = cluster1 ] || range=10.29.8.75-10.29.8.90
    until_true 60 'pools are accepted' pools $c $range
    out=$(carrick lb install --context=$c)
    echo "$out"
    expect 'lb install' "$out" 'MetalLB serves this cluster'
    has "$(kube $c -n metallb-system get deploy,ds -o jsonpath='{..image}')" carrick && fail 'Carrick has put its load balancer beside MetalLB'
  done
  result 'lb install: MetalLB serves, nothing claimed'
}

# previous: builds an older commit as version 0.0.9 into $PREVIOUS: the one that brought test/all.sh, or
# $PREVIOUS_COMMIT. And LATER, this source as a version that may not follow it.
previous() {
  local commit=${PREVIOUS_COMMIT:-$(git log --diff-filter=A --format=%H -- test/all.sh | tail -1)}
  export PREVIOUS=$logs/previous LATER=$logs/carrick-0.4.0
  [ -n "$commit" ] || fail 'no history here to build a previous version from; name a commit in PREVIOUS_COMMIT'
  rm -rf "$PREVIOUS"
  mkdir -p "$PREVIOUS"
  git archive "$commit" | tar -x -C "$PREVIOUS" || fail "git archive $commit"
  make -C "$PREVIOUS" build image VERSION=0.0.9 || fail 'building the previous version'
  CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=0.4.0' -o "$LATER" ./cmd/carrick || fail 'building a later version'
}

# scenarios: all that need no other lab, and what they have counted.
scenarios() {
  test/scenarios.sh $id | tee "$logs/scenarios.out"
  [ "${PIPESTATUS[0]}" -eq 0 ] || fail 'the scenarios'
  result "$(grep -ac '^PASS: ' "$logs/scenarios.out") scenarios; under load $(sed -n 's/^# [a-z]*: \([0-9]*\) requests, 0 lost.*/\1/p' "$logs/scenarios.out" | awk '{n += $1} END {print n + 0}') requests, 0 lost"
}

# istio: genuine istioctl, and the images of Istio's control plane and of its proxy with vanilla Envoy.
istio() {
  export ISTIO=${CACHE:-$HOME/.cache/carrick}/istio
  local envoy=${CACHE:-$HOME/.cache/carrick}/envoy-1.40.0 tag
  tools/istio.sh "$ISTIO" || fail 'building Istio'
  tag=$(cat "$ISTIO/version")
  [ "${1:-}" = images ] || return 0
  [ -x "$envoy/envoy" ] || tools/envoy.sh 1.40.0 "$envoy" || fail 'Envoy'
  bin/lab image build -user 1337:1337 -elf "$ISTIO/pilot-discovery:/usr/local/bin/pilot-discovery" -o "$logs/pilot.tar" \
    "docker.io/istio/pilot:$tag" /usr/local/bin/pilot-discovery || fail 'image of pilot'
  bin/lab image build -deb iptables,nftables -elf "$ISTIO/pilot-agent:/usr/local/bin/pilot-agent" -elf "$envoy/envoy:/usr/local/bin/envoy" \
    -add "$ISTIO/envoy_bootstrap_tmpl.json:/var/lib/istio/envoy/envoy_bootstrap_tmpl.json" -o "$logs/proxyv2.tar" \
    "docker.io/istio/proxyv2:$tag" /usr/local/bin/pilot-agent || fail 'image of proxyv2'
  lab image load "$logs/pilot.tar" "$logs/proxyv2.tar" || fail 'the images of Istio'
}

one() {
  case $1 in
    overlay) start --nodes 2 --overlay; guide; large_bodies ;;
    metallb)
      start --nodes 3
      metallb
      STEPS=1-1 guide
      STEPS=3-20 guide
      takeover metallb
      ;;
    carrick-lb) start --nodes 3; STEPS=1-2 guide; takeover carrick ;;
    kubernetes-1.34)
      bin/lab build --kubernetes 1.34 || fail 'building Kubernetes 1.34'
      start --kubernetes 1.34
      export INSTALL_ARGS='--set values.global.proxy.nativeSidecar=false'
      guide
      has "$(kube cluster1 -n sample get pod -l app=sleep -o jsonpath='{.items[*].spec.containers[*].name}')" istio-proxy ||
        fail 'the sidecar is not a classic one'
      result "sidecars are classic, nodes run $(kube cluster1 get node cluster1 -o jsonpath='{.status.nodeInfo.kubeletVersion}')"
      ;;
    iptables) start --proxy iptables; guide ;;
    distinct) start --distinct; guide ;;
    upgrade)
      previous
      start
      lab image load "$PREVIOUS/dist/images/carrick.tar" || fail 'the images of the previous build'
      MEASURED=$measured test/upgrade.sh cluster1 cluster2 || fail 'upgrade'
      ;;
    registry)
      started && lab image load dist/images/samples.tar || fail 'the images'
      test/registry.sh $id || fail 'the registry'
      result 'steps 1 to 14; pulled with a password from a registry in the lab, after carrick image push'
      ;;
    dist) test/dist.sh || fail 'the release'; result 'two builds, one hash' ;;
    scenarios) start; guide; scenarios ;;
    scenarios-envoy)
      start --nodes 3
      lab image load dist/images/carrick-envoy.tar || fail 'the image with Envoy'
      export INSTALL_ARGS2='--set values.global.proxy.engine=envoy --set values.global.proxy.image=carrick-envoy'
      guide
      scenarios
      ;;
    verbs)
      start
      lab image load dist/images/carrick-envoy.tar || fail 'the image with Envoy'
      export WORK=$logs/verbs CA=carrick INSTALL_ARGS2='--set values.global.proxy.engine=envoy --set values.global.proxy.image=carrick-envoy'
      rm -rf "$WORK" && mkdir "$WORK"
      guide
      CERTS=$WORK/certs test/verbs.sh "$id" | tee "$logs/verbs.out"
      [ "${PIPESTATUS[0]}" -eq 0 ] || fail 'the helping verbs'
      result "$(sed -n 's/^renewals, //p' "$logs/verbs.out" | paste -sd';' | sed 's/;/; /g')"
      ;;
    mesh)
      start --clusters 3
      test/mesh.sh | tee "$logs/mesh.out"
      [ "${PIPESTATUS[0]}" -eq 0 ] || fail 'mesh apply'
      result "$(grep -a '^60 requests from' "$logs/mesh.out" | sed 's/:.*, failed/: failed/' | paste -sd';' | sed 's/;/; /g'); a repeat changes nothing"
      ;;
    helm)
      (cd tools/helm && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$logs/helm" helm.sh/helm/v3/cmd/helm) || fail 'building Helm'
      start --clusters 1
      HELM=$logs/helm test/helm.sh cluster1 || fail 'Helm'
      result "helm $(cd tools/helm && go list -m -f '{{.Version}}' helm.sh/helm/v3): install, upgrade, rollback, uninstall"
      ;;
    grpc)
      start
      lab image load dist/images/carrick-envoy.tar || fail 'the image with Envoy'
      guide
      test/grpc.sh $id | tee "$logs/grpc.out"
      [ "${PIPESTATUS[0]}" -eq 0 ] || fail 'gRPC'
      result "$(grep -a '^PASS: .*balance: ' "$logs/grpc.out" | sed 's/^PASS: //; s/balance: //; s/;.*//' | paste -sd';' | sed 's/;/; /g'); $(grep -a '^PASS: proxyless: v1' "$logs/grpc.out" | sed 's/^PASS: //; s/,[^,]*$//')"
      ;;
    adopt)
      start
      istio images
      test/adopt.sh cluster1 cluster2 || fail 'the takeover of Istio'
      result "$(grep -E 'requests, [0-9]+ lost' "$logs/adopt.log" | paste -sd';')"
      ;;
    istioctl)
      start
      istio
      STEPS=1-14 guide
      test/istioctl.sh cluster1 cluster2 || fail 'istioctl'
      ;;
    *) fail "no run $1" ;;
  esac
}

describe() {
  case $1 in
    overlay) echo '2 nodes a cluster, /26 pod blocks, overlay, MTU 1480' ;;
    metallb) echo 'MetalLB 0.13.12, 3 nodes a cluster' ;;
    carrick-lb) echo "Carrick's load balancer, 3 nodes a cluster: takeover" ;;
    kubernetes-1.34) echo 'Kubernetes 1.34.4, classic sidecars' ;;
    iptables) echo 'kube-proxy in iptables mode' ;;
    distinct) echo 'different pod networks' ;;
    adopt) echo "Istio's own control plane, gateways and sidecars in cluster1, taken over under load; no guide" ;;
    istioctl) echo 'genuine istioctl against Carrick' ;;
    upgrade) echo 'upgrade from the build before, rollback, revisions side by side, under load' ;;
    registry) echo 'images from a registry with a password' ;;
    dist) echo 'none: the release archives' ;;
    scenarios) echo 'scenarios (`test/scenarios.sh`), 1 node a cluster' ;;
    verbs) echo 'helping verbs (`test/verbs.sh`), Envoy in every role of cluster2' ;;
    mesh) echo 'three clusters, made by `mesh apply` (`test/mesh.sh`); no guide' ;;
    helm) echo 'one cluster, the charts with genuine Helm (`test/helm.sh`); no guide' ;;
    grpc) echo 'gRPC and HTTP/2 (`test/grpc.sh`), clients with the proxy, with Envoy and without either' ;;
    scenarios-envoy) echo 'scenarios, 3 nodes a cluster, Envoy in every role of cluster2' ;;
  esac
}

failed=0
cp docs/tested.md "$logs/before.md" || exit 1
for r in "${runs[@]}"; do
  measured=$logs/$r.measured
  : >"$measured"
  begin=$(date +%s)
  if (one "$r") >"$logs/$r.log" 2>&1; then word=pass; else word=FAIL failed=1; fi
  lab down >>"$logs/$r.log" 2>&1
  why=$(paste -sd'|' "$measured" | sed 's/|/; /g')
  [ $word = pass ] || why="${why:+$why; }$(grep -a 'FAIL: ' "$logs/$r.log" | tail -1)"
  printf '%-16s %s %4ds  %s\n' "$r" $word $(($(date +%s) - begin)) "$why"
  printf '| %s | %s | %d s | %s | %s, %s |\n' "$(describe "$r")" $word $(($(date +%s) - begin)) "$why" \
    "$(date -u '+%F %H:%M')" "$(git rev-parse --short HEAD)" >"$logs/$r.row"
done
{
  echo '# What was last tested in the lab'
  echo
  echo "Written by \`make test-all\`: $(nproc) cores, Linux $(uname -r | cut -d- -f1), Carrick $(cat VERSION), $(go env GOVERSION). Kubernetes is $(sed -n 's/^const Kubernetes = "\(.*\)"/\1/p' lab/build/build.go) where the line names no other. Each line is the guide (\`test/walkthrough.sh\`, steps 1 to 20, $REQUESTS requests a loop, none failed) unless it says less. Times are UTC."
  echo
  echo '| clusters | result | took | measured | when, commit |'
  echo '|---|---|---|---|---|'
  for r in "${all[@]}"; do
    if [ -e "$logs/$r.row" ]; then cat "$logs/$r.row"; else grep -F "| $(describe "$r") |" "$logs/before.md"; fi
  done
} >docs/tested.md
exit $failed
