#!/bin/bash
# A mesh of three clusters from one file, by mesh apply, and again with changes. In a lab of three
# clusters with the images and no mesh (see test/all.sh):
#
#   KUBECONFIG=… test/mesh.sh
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
cd "$(dirname "$here")" || exit 1
clusters=(cluster1 cluster2 cluster3)
contexts=("${clusters[@]/#/--context=}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
kube() { kubectl --context="$1" "${@:2}"; }
ready() { until_true 180 "$3 of namespace $2 in $1" kube "$1" -n "$2" rollout status --timeout=1s "$3"; }

cat >"$work/mesh.yaml" <<'Y'
apiVersion: carrick.dev/v1alpha1
kind: Mesh
meshID: mesh1
root: {dir: certs, key: p256}
set: [meshConfig.accessLogFile=/dev/stdout]
clusters:
- {name: cluster1, network: network1, pools: [10.10.50.75-10.10.50.90]}
- {name: cluster2, network: network2, pools: [10.29.8.75-10.29.8.90]}
- {name: cluster3, network: network3, pools: [10.31.3.75-10.31.3.90]}
Y

# open PLAN: its lines that are to do something.
open() { sed '1,/^CLUSTER /d; /^✔/,$d' <<<"$1" | grep -v ' as it should be$'; }
# applied OUT: applies the file into a variable.
applied() {
  shown carrick mesh apply -f mesh.yaml -y
  out=$(carrick mesh apply -f "$work/mesh.yaml" -y 2>&1) || { echo "$out"; fail 'mesh apply'; }
  echo "$out"
}

step 'The plan of a mesh that is not there yet'
run carrick mesh apply -f "$work/mesh.yaml" --dry-run | tee "$work/plan"
[ "${PIPESTATUS[0]}" -eq 0 ] || exit 1
plan=$(cat "$work/plan")
expect 'the root' "$plan" '^\(all\) +root CA in .* make it, with p256'
for c in "${clusters[@]}"; do
  for what in 'Secret cacerts +make it' 'load balancer +install it' 'IPAddressPool mesh +make it' 'control plane +install it' 'east-west gateway +install it' \
    'Gateway cross-network-gateway +make it' 'watches all clusters +wait'; do
    expect "the plan for $c" "$plan" "^$c +$what"
  done
  [ "$(grep -c "^$c  *remote secret of .*make it" <<<"$plan")" -eq 2 ] || fail "the plan has not two remote secrets for $c"
  kube "$c" get ns istio-system >/dev/null 2>&1 && fail "a dry run made a namespace in $c"
done
[ ! -e "$work/certs" ] || fail 'a dry run made certificates'

step 'Made'
applied
expect 'the mesh' "$out" '^✔ Mesh mesh1 is there'

step 'A request between every pair'
run carrick mesh check "${contexts[@]}" | tee "$work/check"
[ "${PIPESTATUS[0]}" -eq 0 ] || exit 1
for c in "${clusters[@]}"; do expect "requests from $c" "$(cat "$work/check")" "^$c +10 of 10 +10 of 10 +10 of 10"; done

step 'A second time, nothing changes'
# everything: what the installation consists of, each with what every change of it moves.
everything() {
  local c
  for c in "${clusters[@]}"; do
    for ns in istio-system metallb-system; do
      kube "$c" -n $ns get deploy,ds,svc,gateways.networking.istio.io,ipaddresspools,l2advertisements,hpa,pdb,role,rolebinding --ignore-not-found \
        -o jsonpath='{range .items[*]}{.kind} {.metadata.name} {.metadata.uid} {.metadata.generation}{"\n"}{end}' || return 1
      kube "$c" -n $ns get secret,cm,sa,role,rolebinding -o jsonpath='{range .items[*]}{.kind} {.metadata.name} {.metadata.uid} {.metadata.resourceVersion}{"\n"}{end}' || return 1
      kube "$c" -n $ns get pod -o jsonpath='{range .items[*]}{.metadata.name} {.metadata.uid}{"\n"}{end}' || return 1
    done
    kube "$c" get crd,mutatingwebhookconfiguration,validatingwebhookconfiguration -o jsonpath='{range .items[*]}{.kind} {.metadata.name} {.metadata.uid} {.metadata.generation}{"\n"}{end}' || return 1
  done
  (cd "$work/certs" && find . -type f -exec sha256sum {} +)
}
everything >"$work/before" || fail 'what there is'
[ "$(wc -l <"$work/before")" -gt 200 ] || fail 'too little is looked at'
applied
expect 'nothing to do' "$out" '^✔ Mesh mesh1 is as the file says'
[ -z "$(open "$out")" ] || fail 'something is left to do'
everything >"$work/after" || fail 'what there is'
diff "$work/before" "$work/after" || fail 'a second time changed something'

step 'One name, three clusters'
n=0
for c in "${clusters[@]}"; do
  n=$((n + 1))
  kube "$c" create namespace sample && kube "$c" label namespace sample istio-injection=enabled || fail "namespace sample in $c"
  kube "$c" apply -n sample -f samples/helloworld/helloworld.yaml -l service=helloworld &&
    kube "$c" apply -n sample -f samples/sleep/sleep.yaml || fail "the samples in $c"
  # The sample has two versions; the third cluster's differs by the name of its pods.
  kube "$c" apply -n sample -f samples/helloworld/helloworld.yaml -l version=v$((n < 3 ? n : 1)) || fail "helloworld in $c"
done
for c in "${clusters[@]}"; do ready "$c" sample deploy/sleep; done
ready cluster1 sample deploy/helloworld-v1
ready cluster2 sample deploy/helloworld-v2
ready cluster3 sample deploy/helloworld-v1
hello() { kube "$1" exec -n sample -c sleep deploy/sleep -- curl -sS --max-time 15 -H 'Connection: close' "helloworld.sample:5000/hello#[1-$2]"; }
three() { [ "$(hello "$1" 12 | grep -Eo 'instance: .*' | sort -u | wc -l)" -eq 3 ]; }
for c in "${clusters[@]}"; do
  until_true 60 "pods of all three clusters answer $c" three "$c"
  out=$(hello "$c" 60)
  echo "60 requests from $c: $(grep -Eo 'instance: .*' <<<"$out" | sort | uniq -c | awk '{print $3, $1}' | paste -sd' '), failed $(grep -vc '^Hello version' <<<"$out")"
  [ "$(grep -c '^Hello version' <<<"$out")" -eq 60 ] && [ "$(grep -Eo 'instance: .*' <<<"$out" | sort -u | wc -l)" -eq 3 ] || fail "requests from $c"
done

step 'What the file or the cluster has changed, and nothing else, is done'
sed -i 's/10.31.3.75-/10.31.3.70-/' "$work/mesh.yaml"
kube cluster2 -n istio-system delete secret istio-remote-secret-cluster3
applied
[ "$(open "$out" | sed 's/  */ /g')" = "cluster3 IPAddressPool mesh change it to what the file says
cluster2 remote secret of cluster3 make it
cluster2 watches all clusters wait until they are synced" ] || fail "the plan is: $(open "$out")"
run carrick mesh check "${contexts[@]}" --requests 0

step "The end of a cluster's CA is told at the end"
run carrick ca renew cluster3 --dir "$work/certs" --days 20 --context=cluster3
applied
expect 'the CA of cluster3' "$(tail -1 <<<"$out")" '^! cluster3: intermediate CA of Secret cacerts .* ends in 19 days, .* carrick ca renew --root-key PATH --context=cluster3$'
run carrick ca renew cluster3 --root-key "$work/certs/root-key.pem" --dir "$work/certs" --context=cluster3
applied
has "$out" '^! ' && fail 'a warning after the renewal'
step 'mesh apply: all passed'
