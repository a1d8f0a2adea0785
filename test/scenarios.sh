#!/bin/bash
# What users do beside the guide, on a running mesh (after test/walkthrough.sh, in the lab): each
# scenario sets something up, proves what must hold, and takes it down again.
#
#   KUBECONFIG=… test/scenarios.sh RUN_ID
#
# SCENARIOS picks some of those below, in the order of their names there (roots brings up a lab of its
# own, RUN_ID with an r behind). The scenarios of test/scenarios/ have namespace $NS to themselves.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
id=${1:?usage: scenarios.sh RUN_ID}
SCENARIOS=${SCENARIOS:-malformed credentials strict routing tcp raw retries hairpin headless probes first exclusions optouts again lb pods client gateways subsets controlplane replicas memory roots}
NS=scenarios
C1=cluster1 C2=cluster2
top=$(dirname "$here")
cd "$top" || exit 1
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT
CARRICK=${CARRICK:-$top/bin/carrick}
lab() { bin/lab --run-id "$id" "$@"; }
kube() { kubectl --context="$1" "${@:2}"; }
pod() { kube "$1" -n "$2" get pod -l "$3" --field-selector=status.phase=Running -o jsonpath='{.items[0].metadata.name}'; }
ready() { until_true 180 "$3 of namespace $2 in $1" kube "$1" -n "$2" rollout status --timeout=1s "$3"; }
pass() { printf '%sPASS: %s%s\n' "$BOLD" "$*" "$RESET"; }

# sleeper COMMAND…: runs a command in sleep of cluster1.
sleeper() { kube "$C1" exec -n sample deploy/sleep -c sleep -- "$@"; }
HELLO=helloworld.sample:5000/hello
# calls N [CURL ARGS]: status and body of N calls of helloworld, a line each.
calls() {
  local n=$1
  shift
  sleeper sh -c 'n=$1; shift; i=0; while [ $i -lt $n ]; do curl -s --max-time 15 -w " %{http_code}\n" "$@" | tr "\n" " "; echo; i=$((i+1)); done' sh "$n" "$@"
}
ok() { [ "$(calls 4 "$HELLO" | grep -c ' 200 *$')" -eq 4 ]; }
both() { local out; out=$(calls 12 "$HELLO"); has "$out" 'version: v1.* 200' && has "$out" 'version: v2.* 200'; }

# logged WHAT PATTERN PODS…: a sidecar's log in cluster1 has such a line, or gets it: access logs are written about once a second.
logged() {
  local what=$1 pattern=$2 pods=("${@:3}")
  in_log() { has "$(kube "$C1" logs "${pods[@]}" -c istio-proxy --tail=200)" "$pattern"; }
  until_true 10 "$what: a line like $pattern" in_log
}

# said KIND NAME PATTERN: whether the object's condition says so.
said() { kube "$C1" -n sample get "$1" "$2" -o jsonpath='{.status.conditions[*].message}' | grep -E -- "$3"; }

malformed() {
  step 'Objects that are wrong change nothing for the others'
  load malformed "$C1" "$HELLO"
  # What the CRD's own schema refuses does not get in at all, which is as good.
  put() { kube "$C1" -n sample apply -f - >"$work/put" 2>&1; cat "$work/put"; }
  put <<'YAML'
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: bad-subset}
spec:
  hosts: [bad.example.com]
  http: [{route: [{destination: {host: helloworld, subset: nowhere}}]}]
---
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: bad-weights}
spec:
  hosts: [helloworld]
  http: [{route: [{destination: {host: helloworld}, weight: 0}, {destination: {host: helloworld}, weight: 0}]}]
---
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: bad-host}
spec: {host: "nobody"}
---
apiVersion: networking.istio.io/v1beta1
kind: Gateway
metadata: {name: bad-protocol}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: x, protocol: NONSENSE}, hosts: ["x.example.com"]}]
---
apiVersion: networking.istio.io/v1beta1
kind: Gateway
metadata: {name: bad-name}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["a..b"]}]
---
apiVersion: networking.istio.io/v1beta1
kind: Gateway
metadata: {name: bad-15443}
spec:
  selector: {istio: eastwestgateway}
  servers: [{port: {number: 15443, name: http, protocol: HTTP}, hosts: ["*"]}]
YAML
  until_true 30 'the unknown subset is named' said virtualservice bad-subset 'spec\.http\[0\]\.route\[0\]\.destination\.subset'
  until_true 30 'the weights are named' said virtualservice bad-weights 'spec\.http\[0\]\.route'
  until_true 30 'the unknown host is named' said destinationrule bad-host 'spec\.host'
  until_true 30 'the protocol is named' said gateway bad-protocol 'spec\.servers\[0\]\.port\.protocol'
  until_true 30 'the host name is named' said gateway bad-name 'spec\.servers\[0\]\.hosts'
  until_true 30 'the port that is taken is named' said gateway bad-15443 'spec\.servers\[0\]'
  both || fail 'both versions still answer'
  unload malformed "$C1"
  kube "$C1" -n sample get virtualservice,destinationrule,gateway -o jsonpath='{range .items[*]}{.kind}/{.metadata.name}: {.status.conditions[*].message}{"\n"}{end}'
  kube "$C1" -n sample delete virtualservice/bad-subset virtualservice/bad-weights destinationrule/bad-host gateway/bad-protocol gateway/bad-name gateway/bad-15443 >/dev/null
  pass "malformed: six objects name their fields; meanwhile $counts"
}

# certificate NAME DAYS USAGE: a key and a certificate, of the CA in $work/ca-NAME.
authority() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$work/$1.key" -out "$work/$1.crt" -days 2 -subj "/CN=$1" 2>/dev/null; }
certificate() { # NAME CA CN
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$work/$1.key" -out "$work/$1.csr" -subj "/CN=$3" 2>/dev/null &&
    openssl x509 -req -in "$work/$1.csr" -CA "$work/$2.crt" -CAkey "$work/$2.key" -CAcreateserial -days 1 -out "$work/$1.crt" \
      -extfile <(echo "subjectAltName=DNS:$3") 2>/dev/null
}

credentials() {
  step 'A Gateway with a certificate of its own'
  local address
  authority ca1; authority ca2; authority clients
  certificate one ca1 hello.example.com; certificate two ca2 hello.example.com; certificate client clients client
  secret() { # NAME CERT CA
    kube "$C1" -n istio-system create secret generic "$1" --type=kubernetes.io/tls --dry-run=client -o yaml \
      --from-file=tls.crt="$work/$2.crt" --from-file=tls.key="$work/$2.key" ${3:+--from-file=ca.crt="$work/$3.crt"} | kube "$C1" apply -f - >/dev/null
  }
  gateway() { # MODE
    kube "$C1" -n sample apply -f - >/dev/null <<YAML
apiVersion: networking.istio.io/v1beta1
kind: Gateway
metadata: {name: secure}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: [hello.example.com]
    tls: {mode: $1, credentialName: hello-credential}
---
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: secure}
spec:
  hosts: [hello.example.com]
  gateways: [secure]
  http: [{route: [{destination: {host: helloworld, port: {number: 5000}}}]}]
YAML
  }
  address=$(kube "$C1" -n istio-system get svc istio-ingressgateway -o jsonpath='{.status.loadBalancer.ingress[0].ip}')
  # The nodes' files are the machine's: curl on client1 reads the same folder.
  get() { lab exec client1 curl -s --max-time 5 --resolve "hello.example.com:443:$address" --cacert "$work/$1.crt" "${@:2}" https://hello.example.com/hello; }
  answers() { get "$@" | grep -q '^Hello version'; }
  refused() { ! answers "$@"; }
  gateway SIMPLE
  until_true 20 'the missing Secret is named' said gateway secure 'credentialName.*hello-credential'
  secret hello-credential one
  until_true 20 'HTTPS with the first certificate' answers ca1
  until_true 20 'no complaint any more' eval '! said gateway secure "hello-credential"'
  secret hello-credential two
  until_true 20 'HTTPS with the second certificate' answers ca2
  refused ca1 || fail 'the first certificate is still served'
  secret hello-credential two clients
  gateway MUTUAL
  until_true 20 'none without a client certificate' refused ca2
  until_true 20 'HTTPS with a client certificate' answers ca2 --cert "$work/client.crt" --key "$work/client.key"
  kube "$C1" -n sample delete gateway/secure virtualservice/secure >/dev/null
  kube "$C1" -n istio-system delete secret hello-credential >/dev/null
  elsewhere
  pass 'credentials: SIMPLE, rotated, MUTUAL; in a namespace of the gateway'
}

# elsewhere: a gateway in a namespace of its own takes its certificate from there, while its Role allows it.
elsewhere() {
  step 'A gateway in a namespace of its own'
  cat >"$work/edge.yaml" <<'YAML'
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
metadata: {name: edge}
spec:
  profile: empty
  components:
    ingressGateways:
    - {name: edge-gateway, namespace: edge, enabled: true, label: {istio: edge}}
YAML
  run "$CARRICK" install --context="$C1" -y -f "$work/edge.yaml"
  ready "$C1" edge deploy/edge-gateway
  gateway SIMPLE
  kube "$C1" -n sample patch gateway secure --type=merge -p '{"spec":{"selector":{"istio":"edge"}}}' >/dev/null
  edge_address() { kube "$C1" -n edge get svc edge-gateway -o jsonpath='{.status.loadBalancer.ingress[0].ip}'; }
  until_true 30 'an address of the gateway' eval '[ -n "$(edge_address)" ]'
  address=$(edge_address)
  edge_secret() { # CERT
    kube "$C1" -n edge create secret tls hello-credential --dry-run=client -o yaml --cert="$work/$1.crt" --key="$work/$1.key" | kube "$C1" apply -f - >/dev/null
  }
  until_true 30 'the missing Secret is named with its namespace' said gateway secure 'namespace edge of the gateway has no Secret hello-credential'
  # A Secret of that name in the control plane's namespace is none of this gateway's.
  secret hello-credential two
  edge_secret one
  until_true 30 'HTTPS with the certificate of namespace edge' answers ca1
  refused ca2 || fail 'the certificate of another namespace is served'
  edge_secret two
  until_true 30 'HTTPS with the rotated certificate' answers ca2
  kube "$C1" -n istio-system delete secret hello-credential >/dev/null
  kube "$C1" -n edge delete role edge-gateway-sds >/dev/null
  kube "$C1" -n istio-system rollout restart deploy/istiod >/dev/null
  ready "$C1" istio-system deploy/istiod
  until_true 60 'the missing Role is named, with the command' said gateway secure 'may not read Secrets of namespace edge.*kubectl -n edge create role'
  # The command, as the status gives it.
  said gateway secure . | grep -oE 'kubectl -n edge create role [^;)]*' | sed "s/kubectl /kubectl --context=$C1 /g" >"$work/fix"
  run cat "$work/fix"
  bash "$work/fix" >/dev/null || fail 'the command of the status'
  until_true 30 'no complaint any more' eval '! said gateway secure "Secret"'
  edge_secret one
  until_true 30 'HTTPS with the certificate rotated again' answers ca1
  kube "$C1" -n sample delete gateway/secure virtualservice/secure >/dev/null
  "$CARRICK" uninstall --context="$C1" -y -f "$work/edge.yaml" >"$work/out" 2>&1 || { cat "$work/out"; fail 'uninstall of the gateway'; }
  kube "$C1" delete namespace edge >/dev/null
}

# peers MODE [PORT MODE]: the mode of namespace sample.
peers() {
  kube "$C1" -n sample apply -f - >/dev/null <<YAML
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: $1}}
YAML
}

strict() {
  step 'Mutual TLS only'
  kube "$C1" get ns plain >/dev/null 2>&1 || kube "$C1" create ns plain >/dev/null
  kube "$C1" -n plain apply -f samples/sleep/sleep.yaml >/dev/null
  ready "$C1" plain deploy/sleep
  local ip
  ip=$(kube "$C1" -n sample get pod -l app=helloworld -o jsonpath='{.items[0].status.podIP}')
  plain() { kube "$C1" -n plain exec deploy/sleep -- curl -sf --max-time 5 "http://$ip:5000/hello"; }
  until_true 30 'plaintext while permissive' plain
  peers STRICT
  until_true 20 'plaintext refused' eval '! plain'
  both || fail 'the mesh still answers'
  logged 'the refusal in the log' '^\[[^]]*\] "- - -" 0 NR filter_chain_not_found .* [0-9.]+:5000 [0-9.]+:[0-9]+ - -$' -n sample -l app=helloworld
  kube "$C1" -n sample apply -f - >/dev/null <<'YAML'
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: workload}
spec:
  selector: {matchLabels: {app: helloworld}}
  mtls: {mode: PERMISSIVE}
YAML
  until_true 20 'plaintext to the workload that allows it' plain
  kube "$C1" -n sample delete peerauthentication workload >/dev/null
  until_true 20 'plaintext refused' eval '! plain'
  kube "$C1" -n sample apply -f - >/dev/null <<'YAML'
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: port}
spec:
  selector: {matchLabels: {app: helloworld}}
  mtls: {mode: STRICT}
  portLevelMtls: {5000: {mode: PERMISSIVE}}
YAML
  until_true 20 'plaintext to the port that allows it' plain
  kube "$C1" -n sample delete peerauthentication port >/dev/null
  until_true 20 'plaintext refused again' eval '! plain'
  peers DISABLE
  until_true 20 'plaintext while disabled' plain
  until_true 20 'the mesh answers without TLS' ok
  kube "$C1" -n sample delete peerauthentication default >/dev/null
  kube "$C1" delete ns plain --wait=false >/dev/null
  until_true 30 'both versions answer' both
  pass 'strict: STRICT, a workload and a port permissive, DISABLE; the refusal is logged'
}

routing() {
  step 'Subsets, weights and routes'
  local c
  # Each control plane reads its own cluster's rules, and a gateway knows the subsets of its own: so both need it.
  for c in "$C1" "$C2"; do
    kube "$c" -n sample apply -f - >/dev/null <<'YAML'
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: helloworld}
spec:
  host: helloworld
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
YAML
  done
  kube "$C1" -n sample apply -f - >/dev/null <<'YAML'
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: helloworld}
spec:
  hosts: [helloworld]
  http:
  - match: [{headers: {x-to: {exact: v2}}}]
    route: [{destination: {host: helloworld, subset: v2}}]
  - match: [{uri: {exact: /old}}]
    redirect: {uri: /hello, redirectCode: 302}
  - match: [{headers: {x-fault: {exact: abort}}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: helloworld, subset: v1}}]
  - match: [{headers: {x-fault: {exact: slow}}}]
    fault: {delay: {fixedDelay: 3s, percentage: {value: 100}}}
    timeout: 1s
    route: [{destination: {host: helloworld, subset: v1}}]
  - route: [{destination: {host: helloworld, subset: v1}, weight: 90}, {destination: {host: helloworld, subset: v2}, weight: 10}]
    retries: {attempts: 2, perTryTimeout: 2s, retryOn: "5xx"}
YAML
  all_v2() { [ "$(calls 10 -H 'x-to: v2' "$HELLO" | grep -c 'version: v2.* 200')" -eq 10 ]; }
  until_true 30 'the subset of the other cluster, by header' all_v2
  local out v1 v2
  out=$(calls 200 "$HELLO")
  v1=$(grep -c 'version: v1.* 200' <<<"$out") v2=$(grep -c 'version: v2.* 200' <<<"$out")
  [ $((v1 + v2)) -eq 200 ] && [ "$v2" -ge 6 ] && [ "$v2" -le 40 ] || fail "90/10: v1 $v1, v2 $v2 of 200"
  expect 'a redirect' "$(sleeper curl -s -o /dev/null --max-time 5 -w '%{http_code} %{redirect_url}' helloworld.sample:5000/old)" '^302 http://helloworld.sample:5000/hello$'
  expect 'a fault' "$(calls 1 -H 'x-fault: abort' "$HELLO")" ' 418 *$'
  kube "$C1" -n sample delete virtualservice/helloworld >/dev/null
  for c in "$C1" "$C2"; do kube "$c" -n sample delete destinationrule/helloworld >/dev/null; done
  until_true 30 'both versions answer' both
  # A rule for some clients only: sleep has the subset, the other sidecar of the namespace has not.
  kube "$C1" -n sample apply -f - >/dev/null <<'YAML'
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: helloworld}
spec:
  host: helloworld
  workloadSelector: {matchLabels: {app: sleep}}
  subsets: [{name: v1, labels: {version: v1}}]
YAML
  subset() { "$CARRICK" proxy-config cluster "$1.sample" --context="$C1" --fqdn helloworld.sample.svc.cluster.local | grep -E '^helloworld.* v1 '; }
  until_true 30 'the workload that a rule selects has its subset' subset deploy/sleep
  ! subset deploy/helloworld-v1 || fail 'a workload that the rule does not select has its subset'
  kube "$C1" -n sample delete destinationrule/helloworld >/dev/null
  pass "routing: header, redirect, abort; 90/10 gave $v1/$v2; a rule for selected workloads"
}

tcp() {
  step 'Outside hosts, and the own Service'
  lab exec client1 sh -c 'cd /tmp && exec timeout 120 python3 -m http.server 8081 --bind 0.0.0.0' >/dev/null 2>&1 &
  local server=$! outside policy
  outside=$(lab exec client1 hostname -I | tr ' ' '\n' | grep '^10\.10\.50\.' | head -1)
  reach() { sleeper curl -sf -o /dev/null --max-time 3 "http://$outside:8081/"; }
  until_true 20 'a host outside of the mesh' reach
  policy() { # MODE
    kube "$C1" -n istio-system get cm istio -o json |
      jq --arg m "$1" '.data.mesh |= (gsub("\noutboundTrafficPolicy:\n  mode: [A-Z_]+\n"; "\n") + "\noutboundTrafficPolicy:\n  mode: " + $m + "\n") | {apiVersion, kind, metadata: {name: "istio", namespace: "istio-system"}, data: {mesh: .data.mesh}}' >"$work/cm.json"
    kube "$C1" -n istio-system patch cm istio --type merge --patch-file "$work/cm.json" >/dev/null || fail 'the ConfigMap'
  }
  policy REGISTRY_ONLY
  until_true 20 'refused with REGISTRY_ONLY' eval '! reach'
  ok || fail 'services of the mesh answer'
  policy ALLOW_ANY
  until_true 20 'a host outside of the mesh, again' reach
  kill $server 2>/dev/null
  pass 'tcp: passthrough, REGISTRY_ONLY'
}

replicas() {
  step 'Two replicas of the control plane'
  local holder now
  kube "$C1" -n istio-system scale deploy istiod --replicas=2 >/dev/null
  ready "$C1" istio-system deploy/istiod
  holds() { kube "$C1" -n istio-system get lease istio-leader -o jsonpath='{.spec.holderIdentity}'; }
  until_true 30 'a holder of the lease' eval '[ -n "$(holds)" ]'
  holder=$(holds)
  kube "$C1" -n istio-system delete pod "$holder" --wait=false >/dev/null || fail "the holder $holder is not a pod"
  moved() { local h; h=$(holds); [ -n "$h" ] && [ "$h" != "$holder" ]; }
  until_true 40 'the lease moves' moved
  now=$(holds)
  ready "$C1" istio-system deploy/istiod
  # New proxies take either replica by chance.
  spread() {
    [ "$("$CARRICK" proxy-status --context="$C1" | awk '$1 ~ /\.(sample|istio-system)$/' | grep -Eo 'istiod-[a-z0-9-]+' | sort -u | wc -l)" -eq 2 ] && return
    kube "$C1" -n sample rollout restart deploy/helloworld-v1 >/dev/null && kube "$C1" -n sample rollout status deploy/helloworld-v1 --timeout=30s >/dev/null
    return 1
  }
  until_true 120 'proxies of both replicas are listed' spread
  run "$CARRICK" proxy-status --context="$C1"
  until_true 60 'both versions answer' both
  kube "$C1" -n istio-system scale deploy istiod --replicas=1 >/dev/null
  ready "$C1" istio-system deploy/istiod
  pass "replicas: the lease went from $holder to $now"
}

# sizes PATTERN: the memory of the processes of pods so named: name, anonymous and resident MB, a line each.
# The processes are the machine's own: found by the pod's name in their environment.
sizes() {
  local pid name
  for pid in $(pgrep -x 'carrick|carrick-proxy'); do
    name=$(tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | sed -n 's/^POD_NAME=//p')
    # shellcheck disable=SC2254 # a pattern
    case $name in $1) ;; *) continue ;; esac
    grep -q "/carrick-lab\.$id/" "/proc/$pid/cgroup" 2>/dev/null || continue
    awk -v n="$name" '/^VmRSS/ {r = $2} /^RssAnon/ {a = $2} END {printf "%s %.1f %.1f\n", n, a/1024, r/1024}' "/proc/$pid/status"
  done
}

# within PATTERN ANONYMOUS RSS: those processes, one at least, have no more MB.
within() { sizes "$1" | awk -v a="$2" -v r="$3" '{print; if ($2 > a || $3 > r) bad = 1} END {exit bad || !NR}'; }

memory() {
  step 'Memory at rest, without traffic and after it'
  local sleepers
  sleepers=$(pod "$C1" sample app=sleep)
  echo 'before (name, anonymous MB, RSS MB):' && sizes 'sleep-*'
  [ "$(calls 200 "$HELLO" | grep -c ' 200 *$')" -eq 200 ] || fail 'not all of 200 calls were answered'
  echo 'when traffic has just ended:' && sizes "$sleepers"
  until_true 60 'the sidecar of sleep is within 12 and 35 MB after traffic' within "$sleepers" 12 35
  sizes "$sleepers"
  # One that nobody has called or sent anything through.
  kube "$C1" -n sample rollout restart deploy/sleep >/dev/null
  ready "$C1" sample deploy/sleep
  gone() { [ "$(kube "$C1" -n sample get pod -l app=sleep -o name | wc -l)" -eq 1 ]; }
  until_true 60 'the former pod of sleep has gone' gone
  sleepers=$(pod "$C1" sample app=sleep)
  until_true 60 'an idle sidecar is within 12 and 35 MB' within "$sleepers" 12 35
  echo 'idle:' && sizes "$sleepers"
  until_true 60 'all of sleep are within 12 and 35 MB' within 'sleep-*' 12 35
  until_true 60 'the control planes are within 100 MB' within 'istiod-*' 100 100
  sizes 'istiod-*'
  pass 'memory: idle and after traffic within their bounds'
}

roots() {
  step 'Two clusters with different roots'
  local other=${id}r out config
  bin/lab --run-id "$other" up || fail 'the lab did not come up'
  trap 'bin/lab --run-id '"$other"' down >/dev/null 2>&1; kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT
  config=$(bin/lab --run-id "$other" kubeconfig)
  bin/lab --run-id "$other" image load dist/images/carrick.tar dist/images/samples.tar || fail 'the images'
  (
    unset INSTALL_ARGS2 # the other lab has the built-in proxy in both clusters
    export KUBECONFIG=$config CARRICK CURL1="bin/lab --run-id $other exec client1 curl" CURL2="bin/lab --run-id $other exec client2 curl"
    for c in "$C1" "$C2"; do kube "$c" create ns istio-system >/dev/null || exit 1; done
    for steps in 2-3 9-13 15-15; do STEPS=$steps test/walkthrough.sh cluster1 cluster2 >"$work/guide" 2>&1 || { tail -5 "$work/guide"; exit 1; }; done
  ) || fail 'the guide without its steps 7 and 8'
  export KUBECONFIG=$config
  refusal() {
    calls 6 "$HELLO" >/dev/null
    kube "$C1" -n sample logs deploy/sleep -c istio-proxy --tail=400 | grep -E "is not trusted .* its root is .*SHA-256 [0-9a-f]{64}.* trusted roots are .*SHA-256 [0-9a-f]{64}.* give both clusters' CAs" | tail -1
  }
  named() { out=$(refusal); [ -n "$out" ]; }
  until_true 60 'the refusal names the roots' named
  refusal
  mismatch() { "$CARRICK" remote-clusters --context="$C1" | grep -iE 'root.*sha-?256|sha-?256.*root'; }
  until_true 60 'remote-clusters names the roots' mismatch
  run "$CARRICK" remote-clusters --context="$C1"
  bin/lab --run-id "$other" down
  pass 'roots: named by proxy and remote-clusters'
}

for f in test/scenarios/*.sh; do . "$f"; done
# Those of pods, Services and loads have web, in a namespace of their own.
for s in $SCENARIOS; do
  case $s in
    raw | retries | hairpin | headless | probes | first | exclusions | optouts | again | lb | client) kube "$C1" -n "$NS" get deploy web >/dev/null 2>&1 || mesh_ns ;;
  esac
  begin=$(date +%s)
  "$s"
  note "$s: $(($(date +%s) - begin)) s"
done
if [ -z "${KEEP:-}" ] && kube "$C1" get ns "$NS" >/dev/null 2>&1; then
  for c in "$C1" "$C2"; do kube "$c" delete ns "$NS" >/dev/null; done
fi
step "scenarios: all passed"
