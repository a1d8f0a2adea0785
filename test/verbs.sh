#!/bin/bash
# The helping verbs on a running mesh (after test/walkthrough.sh, in the lab, Envoy in cluster2 or not):
# each says what is so, and what is wrong when one thing is broken.
#
#   KUBECONFIG=… CERTS=DIR test/verbs.sh RUN_ID
#
# CERTS holds root-key.pem and root-cert.pem of the mesh, and cluster1/ and cluster2/; renew replaces what
# is there, as it does the mesh's root. VERBS picks some of those below.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
id=${1:?usage: verbs.sh RUN_ID}
VERBS=${VERBS:-check trace outside explain status logs analyze breaks renew}
C1=cluster1 C2=cluster2
top=$(dirname "$here")
cd "$top" || exit 1
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT
CARRICK=${CARRICK:-$top/bin/carrick}
carrick() { "$CARRICK" "$@"; }
lab() { bin/lab --run-id "$id" "$@"; }
kube() { kubectl --context="$1" "${@:2}"; }
pod() { kube "$1" -n sample get pod -l "$2" --field-selector=status.phase=Running -o jsonpath='{.items[0].metadata.name}'; }
quick() { carrick mesh check --requests 0; }

# finds WHAT PATTERN: mesh check fails and says so, within what a control plane needs to see it.
finds() {
  local out end=$(($(date +%s) + 30))
  while :; do
    if out=$(quick 2>&1); then :; elif has "$out" "$2"; then grep -E -m1 -- "$2" <<<"$out"; return; fi
    [ "$(date +%s)" -lt "$end" ] || { printf '%s\n' "$out" >&2; fail "mesh check does not find $1"; }
  done
}
heals() { until_true 60 "mesh check is content after $1" quick; }

check() {
  step 'mesh check: a request between every pair'
  out=$(carrick mesh check) || { echo "$out"; fail 'mesh check'; }
  echo "$out"
  expect 'from cluster1' "$out" 'cluster1 +10 of 10 +10 of 10'
  expect 'from cluster2' "$out" 'cluster2 +10 of 10 +10 of 10'
  gone() { [ -z "$(kube $C1 get ns -l carrick.dev/check -o name)$(kube $C2 get ns -l carrick.dev/check -o name)" ]; }
  until_true 60 'the namespaces of the check are gone' gone
  carrick mesh check --requests 0 -o json | grep -q '"findings": \[\]' || fail 'as JSON'
}

trace() {
  step 'trace: curl of the pod, and a pod without curl, until another cluster answers'
  local src n found
  for src in deploy/sleep.sample "deploy/helloworld-v1.sample"; do
    found=
    for n in 1 2 3 4 5 6 7 8; do
      out=$(carrick trace "$src" http://helloworld.sample:5000/hello --context=$C1) || { echo "$out"; fail "trace from $src"; }
      has "$out" 'answered by cluster2, through its gateway' && { found=1; break; }
    done
    [ -n "$found" ] || { echo "$out"; fail "no trace from $src through the gateway"; }
    echo "$out"
    expect 'hop 1' "$out" '^1\. sample/.* in cluster1: ✔ sent it to gateway of cluster2'
    expect 'hop 2' "$out" '^2\. istio-system/istio-eastwestgateway-.* in cluster2: ✔'
    expect 'hop 3' "$out" '^3\. sample/helloworld-v2-.* in cluster2: ✔ took it by mutual TLS'
    expect 'clocks' "$out" '^Clocks: '
  done
  expect 'the way it was sent' "$out" 'ephemeral container sent the request|has no curl' || :
}

outside() {
  step 'trace: from outside, to the ingress gateway'
  local address config=$work/kubeconfig
  address=$(kube $C1 -n istio-system get service istio-ingressgateway -o jsonpath='{.status.loadBalancer.ingress[0].ip}')
  sed '/proxy-url:/d' "$KUBECONFIG" >"$config" # client1 stands on the LAN itself
  out=$(lab exec client1 "$CARRICK" --kubeconfig "$config" trace "http://$address/productpage" --context=$C1) || { echo "$out"; fail 'trace from outside'; }
  echo "$out"
  expect 'the gateway' "$out" '^1\. istio-system/istio-ingressgateway-.* in cluster1: ✔ sent it to pod default/productpage'
  expect 'the verdict' "$out" '^✔ answered in cluster1, through the gateway istio-system/istio-ingressgateway'
}

explain() {
  step 'explain: a line of each side'
  local line
  kube $C1 exec -n sample deploy/sleep -c sleep -- sh -c 'for i in 1 2 3 4 5 6 7 8; do curl -s helloworld.sample:5000/hello >/dev/null; done'
  logged() { line=$(kube "$1" -n sample logs deploy/"$2" -c istio-proxy --tail=200 | grep "$3" | tail -1); [ -n "$line" ]; }
  until_true 20 'a line of the source' logged $C1 sleep '10\.29\.8\.[0-9]*:15443'
  logged $C1 sleep '10\.29\.8\.[0-9]*:15443'
  out=$(carrick explain --context=$C1 <<<"$line") || fail 'explain'
  echo "$out"
  expect 'the gateway' "$out" 'gateway of cluster2, network network2'
  expect 'the service' "$out" 'Service sample/helloworld'
  until_true 20 'a line of the destination' logged $C2 helloworld-v2 'outbound_.5000_._.helloworld'
  logged $C2 helloworld-v2 'outbound_.5000_._.helloworld'
  out=$(carrick explain --context=$C2 <<<"$line") || fail 'explain'
  expect 'the pod' "$out" 'pod sample/helloworld-v2'
  expect 'the gateway pod' "$out" 'pod istio-system/istio-eastwestgateway'
}

status() {
  step 'proxy-status POD: what was sent is what each proxy has'
  local c
  for c in $C1 $C2; do
    for p in deploy/sleep.sample deploy/istio-ingressgateway.istio-system deploy/istio-eastwestgateway.istio-system; do
      out=$(carrick proxy-status "$p" --context=$c) || { echo "$out"; fail "proxy-status $p of $c"; }
      expect "$p of $c" "$out" '^Clusters Match'
    done
  done
  echo "$out"
  carrick proxy-status --all-contexts -o json | grep -q '"cluster2": \[' || fail 'all contexts as JSON'
  out=$(carrick proxy-config endpoint deploy/sleep.sample --all-contexts --port 5000) || fail 'endpoints of all contexts'
  expect 'all contexts' "$out" '^context cluster2'
}

logs() {
  step 'proxy-config log, of each proxy'
  local c
  for c in $C1 $C2; do
    out=$(carrick proxy-config log deploy/sleep.sample --context=$c --level debug) || fail "log level in $c"
    expect "debug in $c" "$out" ' debug$'
    out=$(carrick proxy-config log deploy/sleep.sample --context=$c --reset -o yaml) || fail "log level in $c"
    expect "reset in $c" "$out" ': warning$'
  done
}

analyze() {
  step 'analyze'
  out=$(carrick analyze -A --context=$C1) || { echo "$out"; fail 'analyze of a good mesh'; }
  echo "$out"
  expect 'default is not injected' "$out" 'Info \[IST0102\] \(Namespace default'
  cat >"$work/vs.yaml" <<'Y'
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: broken, namespace: sample}
spec: {hosts: [nowhere.example.com], gateways: [absent], http: [{route: [{destination: {host: nowhere}}]}]}
Y
  out=$(carrick analyze -A --context=$C1 "$work/vs.yaml") && fail 'analyze takes a broken file'
  expect 'a missing gateway' "$out" 'Error \[IST0101\] \(VirtualService sample/broken cluster1\) spec.gateways\[0\]'
  kube $C1 -n sample get virtualservice broken 2>/dev/null && fail 'analyze applied the file'
  :
}

# breaks: one thing after the other, and what mesh check says.
breaks() {
  step 'mesh check: what is broken is found'
  heals 'nothing'
  kube $C2 label ns istio-system topology.istio.io/network- >/dev/null
  finds 'a missing network label' '✘ cluster2: namespace istio-system has no label topology.istio.io/network'
  kube $C2 label ns istio-system topology.istio.io/network=network1 >/dev/null
  finds 'an equal network label' '✘ cluster2: namespace istio-system has label topology.istio.io/network=network1, but .* network2'
  kube $C2 label ns istio-system topology.istio.io/network=network2 --overwrite >/dev/null
  heals 'the label'
  kube $C2 -n istio-system delete gateway cross-network-gateway >/dev/null
  finds 'a missing expose-services' '✘ cluster2 exposes no services to other networks'
  run kubectl --context=$C2 apply -n istio-system -f samples/multicluster/expose-services.yaml
  heals 'expose-services'
  kube $C1 -n istio-system delete secret istio-remote-secret-cluster2 >/dev/null
  finds 'a missing remote secret' '✘ cluster1 does not watch cluster2; carrick create-remote-secret'
  carrick create-remote-secret --context=$C2 --name=cluster2 >"$work/good" || fail 'create-remote-secret'
  sed 's/token: .*/token: nonsense/' "$work/good" | kube $C1 apply -f - >/dev/null
  finds 'a token that is none' '✘ cluster1 watches cluster2, but is '
  # The secret of another cluster: cluster1 itself, under the name of cluster2.
  carrick create-remote-secret --context=$C1 --name=cluster2 | kube $C1 apply -f - >/dev/null
  finds 'the secret of another cluster' "✘ cluster1: the token in Secret istio-remote-secret-cluster2 is not of cluster2's account"
  kube $C1 apply -f "$work/good" >/dev/null
  heals 'the remote secret'
}

# load CONTEXT: calls the pods of the other cluster, until told to stop; a line per request. No pod of its
# own cluster can stand in for one that is not reached.
load() {
  local c v=v1
  [ "$1" = $C2 ] || v=v2
  for c in $C1 $C2; do
    kube "$c" apply -n sample -f - >/dev/null <<Y || fail "Service remote-$v"
apiVersion: v1
kind: Service
metadata: {name: remote-$v}
spec: {selector: {app: helloworld, version: $v}, ports: [{name: http, port: 5000}]}
Y
  done
  answers() { [ "$(kube "$1" exec -n sample deploy/sleep -c sleep -- curl -s -o /dev/null --max-time 5 -w '%{http_code}' remote-$v.sample:5000/hello)" = 200 ]; }
  until_true 30 "remote-$v answers $1" answers "$1"
  kube "$1" exec -n sample deploy/sleep -c sleep -- sh -c 'rm -f /tmp/stop; end=$(($(date +%s) + 900))
    while [ ! -e /tmp/stop ] && [ $(date +%s) -lt $end ]; do curl -s -o /dev/null --max-time 15 -w "%{http_code}\n" remote-'$v'.sample:5000/hello; done' >"$work/load-$1" 2>/dev/null
}
# more: 400 more requests from each cluster than there are now: connections that others made have gone.
more() {
  local c
  for c in $C1 $C2; do
    at=$(($(wc -l <"$work/load-$c") + 400))
    reached() { [ "$(wc -l <"$work/load-$c")" -ge $at ]; }
    until_true 120 "more requests from $c" reached
  done
}
leaf() { carrick proxy-config secret deploy/"${2:-sleep}.${3:-sample}" --context="$1" | awk '$1 == "default" {print $6}'; }
leaves() { local c; for c in $C1 $C2; do echo "$(leaf $c) $(leaf $c istio-ingressgateway istio-system)"; done; }
# renewed: every leaf is another than the last time, and there.
renewed() {
  local now
  now=$(leaves) || return 1
  [ "$(wc -w <<<"$now")" -eq "$(wc -w <<<"$had")" ] && [ "$(tr ' ' '\n' <<<"$now" | sort | comm -12 - <(tr ' ' '\n' <<<"$had" | sort) | grep -c .)" -eq 0 ]
}
# trusts CONTEXT FILE: the proxies there have this root among theirs.
trusts() {
  local p root
  root=$(sed '/-----/d' "$2" | tr -d '\n')
  for p in deploy/sleep.sample deploy/istio-ingressgateway.istio-system; do
    carrick proxy-config secret $p --context="$1" -o json | jq -r '[.. | .trustedCa? // empty | .inlineBytes] | first' | base64 -d | tr -d '\n' | grep -qF -- "$root" || return 1
  done
}

renew() {
  step 'ca renew, and a change of the root, while requests of both clusters go on'
  [ -r "${CERTS:-}/root-key.pem" ] || fail 'CERTS names no directory with root-key.pem'
  local c n lost bad=0 loads=''
  for c in $C1 $C2; do load $c & loads="$loads $!"; done
  for c in $C1 $C2; do until_true 60 "the load of $c has begun" test -s "$work/load-$c"; done
  had=$(leaves)
  run carrick ca renew cluster1 --dir "$CERTS" --context=$C1 --days 20
  finds 'an intermediate for 20 days' '✘ cluster1: intermediate CA of Secret cacerts .* ends in 19 days'
  warned() { kube $C1 -n istio-system get event --field-selector=involvedObject.name=cacerts -o jsonpath='{.items[*].message}' | grep -q 'ends in 19 days'; }
  until_true 30 'an event on Secret cacerts' warned
  logged() { kube $C1 -n istio-system logs deploy/istiod --since=60s | grep 'ends in 19 days'; }
  until_true 30 "the control plane's log warns" logged
  run carrick ca renew cluster2 --dir "$CERTS" --context=$C2
  until_true 60 'workloads and gateways have certificates of the new intermediates' renewed
  run carrick ca renew cluster1 --dir "$CERTS" --context=$C1
  heals 'the renewal'
  run carrick ca show --context=$C1 --context=$C2
  more

  note 'the root: first both clusters trust the new one, too'
  run carrick ca root --dir "$work/new" --key p256
  mkdir "$work/both"
  for c in cluster1 cluster2; do
    cp -r "$CERTS/$c" "$work/both/"
    cat "$CERTS/root-cert.pem" "$work/new/root-cert.pem" >"$work/both/$c/root-cert.pem"
    run carrick ca install $c --dir "$work/both" --replace --context=$c
  done
  for c in $C1 $C2; do until_true 60 "proxies of $c trust the new root" trusts $c "$work/new/root-cert.pem"; done
  note 'then both sign under the new one, and still trust the old one'
  had=$(leaves)
  for c in cluster1 cluster2; do
    run carrick ca intermediate $c --dir "$work/new" --key p256
    cat "$CERTS/root-cert.pem" >>"$work/new/$c/root-cert.pem"
    run carrick ca install $c --dir "$work/new" --replace --context=$c
    more # the clusters change one after another
  done
  until_true 60 'workloads and gateways have certificates under the new root' renewed
  note 'at last only the new one is named; the old one is trusted until its last certificate has ended'
  for c in cluster1 cluster2; do
    cp "$work/new/root-cert.pem" "$work/new/$c/root-cert.pem"
    run carrick ca install $c --dir "$work/new" --replace --context=$c
  done
  heals 'the change of root'
  run carrick ca show --context=$C1 --context=$C2
  more
  for c in $C1 $C2; do kube $c exec -n sample deploy/sleep -c sleep -- touch /tmp/stop || fail "stopping the load of $c"; done
  wait $loads
  rm -rf "$CERTS" && cp -r "$work/new" "$CERTS" # the mesh's root is this one now
  for c in $C1 $C2; do
    n=$(wc -l <"$work/load-$c") lost=$(grep -vc '^200$' "$work/load-$c")
    echo "renewals, from $c: $n requests, $lost lost"
    [ "$lost" -eq 0 ] && [ "$n" -gt 200 ] || bad=1
  done
  [ $bad -eq 0 ] || fail 'requests were lost'
}

for v in $VERBS; do $v || fail "$v"; done
step 'the helping verbs: all passed'
