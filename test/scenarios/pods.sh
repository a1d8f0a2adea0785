# Scenarios of single pods and Services: redirection, injection, probes, kinds of Services. Sourced by
# test/scenarios.sh.

# mesh_ns: namespace $NS with web in both clusters.
mesh_ns() {
  local c
  for c in "$C1" "$C2"; do
    kube "$c" get ns "$NS" >/dev/null 2>&1 || kube "$c" create ns "$NS" >/dev/null
    kube "$c" label ns "$NS" istio-injection=enabled --overwrite >/dev/null
    sed "s/CLUSTER/$c/" test/testdata/scenarios/web.yaml | kube "$c" -n "$NS" apply -f - >/dev/null || fail "web in $c"
  done
  for c in "$C1" "$C2"; do ready "$c" "$NS" deploy/web; done
}
# many N CURL-ARGS…: the bodies of N calls from sleep.
many() {
  local n=$1
  shift
  sleeper sh -c 'n=$1; shift; i=0; while [ $i -lt $n ]; do curl -s --max-time 15 "$@"; i=$((i+1)); done' sh "$n" "$@"
}
web_pod() { kube "$1" -n "$NS" get pod -l app=web --field-selector=status.phase=Running -o jsonpath='{.items[0].metadata.name}'; }
in_web() { kube "$C1" -n "$NS" exec deploy/web -c web -- "$@"; }
strict_ns() { # the namespace takes only mutual TLS
  local c
  for c in "$C1" "$C2"; do
    kube "$c" -n "$NS" apply -f - >/dev/null <<'YAML'
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
YAML
  done
}
no_strict_ns() { for c in "$C1" "$C2"; do kube "$c" -n "$NS" delete peerauthentication default >/dev/null; done; }

raw() {
  step 'TCP across the clusters'
  local out a b
  by_both() { local o; o=$(many 20 "web.$NS:$1"); has "$o" "^$C1 web-" && has "$o" "^$C2 web-"; }
  strict_ns
  until_true 30 'HTTP from both clusters' by_both 8080
  until_true 30 'TCP from both clusters' by_both 9090
  out=$(many 60 "web.$NS:9090")
  a=$(grep -c "^$C1 " <<<"$out") b=$(grep -c "^$C2 " <<<"$out")
  [ $((a + b)) -eq 60 ] && [ "$a" -ge 15 ] && [ "$b" -ge 15 ] || fail "60 connections: $a here, $b there"
  logged 'a TCP line of the log' "^\[[^]]*\] \"- - -\" 0 - - - \"-\" [0-9]+ [0-9]+ [0-9]+ - \"-\" \"-\" \"-\" \"-\" \"[0-9.]+:15443\" outbound\|9090\|\|web\.$NS\.svc\.cluster\.local " -n sample deploy/sleep
  no_strict_ns
  pass "raw: $a connections here, $b there, mutual TLS only"
}

hairpin() {
  step 'A pod that calls its own Service'
  local ip p
  strict_ns
  kube "$C2" -n "$NS" scale deploy web --replicas=0 >/dev/null
  p=$(web_pod "$C1")
  own() { [ "$(in_web curl -s --max-time 3 "$1")" = "$C1 $p" ]; }
  own_only() { local i; for i in 1 2 3 4 5 6; do own "$1" || return 1; done; }
  until_true 60 'HTTP, by name' own_only "web.$NS:8080"
  until_true 20 'TCP, by name' own_only "web.$NS:9090"
  ip=$(kube "$C1" -n "$NS" get pod "$p" -o jsonpath='{.status.podIP}')
  until_true 20 'by its own address' own "$ip:8080"
  until_true 20 'by localhost' own 127.0.0.1:8080
  logged 'it went through both sides of its sidecar' " inbound\|8080\|\| 127\.0\.0\.6:[0-9]+ .* outbound_\.8080_\._\.web\.$NS\.svc\.cluster\.local default\$" -n "$NS" "$p"
  kube "$C2" -n "$NS" scale deploy web --replicas=1 >/dev/null
  ready "$C2" "$NS" deploy/web
  no_strict_ns
  pass 'hairpin: by name (HTTP, TCP), by address, by localhost'
}

headless() {
  step 'A Service without an address, and pods with names'
  strict_ns
  sed "s/CLUSTER/$C1/" test/testdata/scenarios/headless.yaml | kube "$C1" -n "$NS" apply -f - >/dev/null || fail db
  ready "$C1" "$NS" statefulset/db
  db() { [ "$(sleeper curl -s --max-time 3 "$1")" = "$C1 $2" ]; }
  local i port
  for port in 8080 9090; do
    for i in 0 1; do until_true 30 "db-$i, port $port" db "db-$i.db.$NS:$port" "db-$i"; done
    # Which of them is the client's choice, of the addresses that its DNS gave.
    some() { [ "$(many 10 "db.$NS:$port" | grep -c "^$C1 db-[01]")" -eq 10 ]; }
    until_true 30 "db, port $port" some
  done
  kube "$C1" -n "$NS" scale statefulset db --replicas=3 >/dev/null
  ready "$C1" "$NS" statefulset/db
  until_true 30 'db-2, new' db "db-2.db.$NS:8080" db-2
  kube "$C1" -n "$NS" delete pod db-0 >/dev/null
  ready "$C1" "$NS" statefulset/db
  until_true 30 'db-0, again' db "db-0.db.$NS:8080" db-0
  kube "$C1" -n "$NS" delete statefulset/db svc/db >/dev/null
  no_strict_ns
  pass 'headless: by pod and by Service, HTTP and TCP, mutual TLS only'
}

probe_pod() { # NAME PROBES [ANNOTATIONS] [CONTAINER]
  kube "$C1" -n "$NS" apply -f - >/dev/null <<YAML || fail "pod $1"
apiVersion: v1
kind: Pod
metadata: {name: $1, labels: {scenario: probes}, annotations: {${3:-}}}
spec:
  terminationGracePeriodSeconds: 10
  containers:
  - name: app
    image: docker.io/curlimages/curl:latest
    imagePullPolicy: IfNotPresent
    command: [sh, /config/start]
    $2
    volumeMounts: [{name: data, mountPath: /data}, {name: config, mountPath: /config}]
  ${4:-}
  volumes: [{name: data, emptyDir: {}}, {name: config, configMap: {name: web}}]
YAML
}
hits() { in_web curl -s --max-time 3 "localhost:8080/cgi-bin/hits?$1"; }

probes() {
  step "The kubelet's probes and hooks"
  local p native
  strict_ns
  kube "$C2" -n "$NS" scale deploy web --replicas=0 >/dev/null # so that web counts in one place
  probe_pod http-good 'readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}'
  probe_pod http-bad 'readinessProbe: {httpGet: {path: /nowhere, port: 8080}, periodSeconds: 1}'
  probe_pod tcp-good 'readinessProbe: {tcpSocket: {port: 9090}, periodSeconds: 1}'
  probe_pod tcp-bad 'readinessProbe: {tcpSocket: {port: 9999}, periodSeconds: 1}'
  probe_pod grpc-bad 'readinessProbe: {grpc: {port: 8080}, periodSeconds: 1}'
  probe_pod startup-good 'startupProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1, failureThreshold: 30}'
  probe_pod startup-bad 'startupProbe: {httpGet: {path: /nowhere, port: 8080}, periodSeconds: 1, failureThreshold: 5}'
  for native in true false; do
    # The second container starts when the first one's hook has seen it listen.
    probe_pod "hooks-$native" 'lifecycle: {postStart: {exec: {command: [curl, -s, --retry, "20", --retry-connrefused, --retry-delay, "1", localhost:8080]}}, preStop: {httpGet: {path: "/cgi-bin/told", port: 8080}}}' \
      "sidecar.istio.io/nativeSidecar: \"$native\"" \
      '- {name: second, image: "docker.io/curlimages/curl:latest", imagePullPolicy: IfNotPresent, command: [sleep, infinity], lifecycle: {postStart: {httpGet: {path: "/cgi-bin/hit?start", port: 8080}}}}'
  done
  is_ready() { [ "$(kube "$C1" -n "$NS" get pod "$1" -o jsonpath='{.status.containerStatuses[?(@.name=="app")].ready}')" = "$2" ]; }
  state() { kube "$C1" -n "$NS" get pod "$1" -o jsonpath='{.status.containerStatuses[?(@.name=="app")].state.running.startedAt} {.status.initContainerStatuses[?(@.name=="istio-proxy")].ready}{.status.containerStatuses[?(@.name=="istio-proxy")].ready}' | grep -q '. true$'; }
  for p in http-good tcp-good startup-good hooks-true hooks-false; do until_true 60 "$p is ready" is_ready $p true; done
  until_true 40 'a bad startup probe restarts' eval '[ "$(kube "$C1" -n "$NS" get pod startup-bad -o jsonpath="{.status.containerStatuses[?(@.name==\"app\")].restartCount}")" -ge 1 ]'
  for p in http-bad tcp-bad grpc-bad; do
    until_true 60 "$p runs, with its sidecar ready" state $p
    until_true 30 "$p is told to be unhealthy" eval 'kube "$C1" -n "$NS" get events --field-selector "involvedObject.name='$p',reason=Unhealthy" -o name | grep -q .'
    is_ready $p false || fail "$p is ready, though its probe fails"
  done
  for native in true false; do
    p=hooks-$native
    until_true 10 "postStart, native $native" eval '[ "$(kube "$C1" -n "$NS" exec '$p' -c app -- cat /data/hits-start | wc -l)" -ge 1 ]'
    # preStop's program tells web, through the mesh, before the pod ends.
    kube "$C1" -n "$NS" exec $p -c app -- sh -c 'printf "#!/bin/sh\ncurl -s --max-time 3 \"web.$1:8080/cgi-bin/hit?stop-$2\" >/dev/null\nprintf \"Content-Type: text/plain\\r\\n\\r\\ntold\\n\"\n" >/data/cgi-bin/told; chmod +x /data/cgi-bin/told' sh "$NS" "$native"
    kube "$C1" -n "$NS" delete pod $p >/dev/null
    [ "$(hits "stop-$native")" = 1 ] || fail "preStop, native $native: web counts $(hits "stop-$native")"
  done
  kube "$C1" -n "$NS" delete pod -l scenario=probes --grace-period=1 >/dev/null
  kube "$C2" -n "$NS" scale deploy web --replicas=1 >/dev/null
  no_strict_ns
  pass 'probes: HTTP, TCP, gRPC, startup, postStart, preStop; good and bad, mutual TLS only'
}

first() {
  step 'The first request of an application succeeds'
  local native got
  for native in true false; do
    kube "$C1" -n "$NS" apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata:
  name: first-$native
  annotations: {sidecar.istio.io/nativeSidecar: "$native", proxy.istio.io/config: "holdApplicationUntilProxyStarts: true"}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  $([ $native = true ] && echo 'initContainers: [{name: before, image: "docker.io/curlimages/curl:latest", imagePullPolicy: IfNotPresent, command: [curl, -sf, --max-time, "5", "helloworld.sample:5000/hello"]}]')
  containers:
  - {name: app, image: "docker.io/curlimages/curl:latest", imagePullPolicy: IfNotPresent, command: [sh, -c, "curl -s -o /dev/null --max-time 5 -w '%{http_code} first\n' helloworld.sample:5000/hello; sleep 60"]}
YAML
    until_true 60 'the application has asked' eval 'kube "$C1" -n "$NS" logs first-'$native' -c app | grep -q first'
    got=$(kube "$C1" -n "$NS" logs "first-$native" -c app)
    has "$got" '^200 first$' || fail "native $native: $got"
  done
  has "$(kube "$C1" -n "$NS" logs first-true -c before)" '^Hello version' || fail 'the init container got no answer'
  kube "$C1" -n "$NS" delete pod first-true first-false >/dev/null
  pass 'first: native (and its init container), classic that holds the application'
}

# A client with an annotation, and what it gets of an HTTP server that takes only mutual TLS: an
# answer, if the traffic goes through its sidecar.
excluding() { # NAME KEY VALUE
  kube "$C1" -n "$NS" apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1, labels: {scenario: exclusions}, annotations: {"$2": "$3"}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: "docker.io/curlimages/curl:latest", imagePullPolicy: IfNotPresent, command: [sleep, infinity]}]
YAML
  until_true 60 "pod $1" kube "$C1" -n "$NS" wait --for=condition=Ready "pod/$1" --timeout=1s
}
exclusions() {
  step 'Ports and addresses that are left out'
  local service ip t=traffic.sidecar.istio.io
  strict_ns
  kube "$C2" -n "$NS" scale deploy web --replicas=0 >/dev/null
  service=$(kube "$C1" -n "$NS" get svc web -o jsonpath='{.spec.clusterIP}')
  excluding none example.com/none x
  excluding out-port $t/excludeOutboundPorts 8080
  excluding out-range $t/excludeOutboundIPRanges "$service/32"
  excluding only-range $t/includeOutboundIPRanges 10.10.50.0/24
  excluding only-port $t/includeOutboundIPRanges ''
  app() { kube "$C1" -n "$NS" exec "$1" -c app -- curl -s -o /dev/null --max-time 5 -w '%{http_code}' "$2"; }
  gets() { [ "$(app "$1" "$2")" = "$3" ]; }
  until_true 30 'through the mesh' gets none "web.$NS:8080" 200
  until_true 20 'not through the mesh: the port is excluded' gets out-port "web.$NS:8080" 000
  gets out-port helloworld.sample:5000/hello 200 || fail 'other ports go through the mesh'
  until_true 20 'not through the mesh: the range is excluded' gets out-range "web.$NS:8080" 000
  gets out-range "helloworld.sample:5000/hello" 200 || fail 'other addresses go through the mesh'
  until_true 20 'not through the mesh: another range is included' gets only-range "web.$NS:8080" 000
  # The other way: a port of the server that is excluded takes plaintext, in spite of STRICT.
  kube "$C1" -n "$NS" patch deploy web --type merge -p '{"spec":{"template":{"metadata":{"annotations":{"'$t'/excludeInboundPorts":"9090"}}}}}' >/dev/null
  kube "$C1" -n "$NS" rollout status deploy/web --timeout=60s >/dev/null || fail 'web'
  ip=$(kube "$C1" -n "$NS" get pod "$(web_pod "$C1")" -o jsonpath='{.status.podIP}')
  until_true 20 'plaintext to the excluded port' gets only-range "$ip:9090" 200
  gets only-range "$ip:8080" 000 || fail 'plaintext to the other port'
  kube "$C1" -n "$NS" patch deploy web --type json -p '[{"op":"remove","path":"/spec/template/metadata/annotations"}]' >/dev/null
  kube "$C1" -n "$NS" rollout status deploy/web --timeout=60s >/dev/null
  kube "$C1" -n "$NS" delete pod -l scenario=exclusions >/dev/null
  kube "$C2" -n "$NS" scale deploy web --replicas=1 >/dev/null
  no_strict_ns
  pass 'exclusions: outbound ports and ranges, inbound ports'
}

optouts() {
  step 'Who is injected, and who is not'
  optout() { # NAMESPACE NAME METADATA SPEC
    kube "$C1" -n "$1" run "$2" --image=docker.io/curlimages/curl:latest --image-pull-policy=IfNotPresent --restart=Never --dry-run=server -o json \
      --overrides="{\"apiVersion\":\"v1\",\"metadata\":$3,\"spec\":$4}" --command -- sleep 1 | jq -r '[(.spec.initContainers // [])[], .spec.containers[]] | map(.name) | join(",")'
  }
  local l='"labels":{"sidecar.istio.io/inject":' a='"annotations":{"sidecar.istio.io/inject":'
  kube "$C1" get ns plain2 >/dev/null 2>&1 || kube "$C1" create ns plain2 >/dev/null
  kube "$C1" get ns off >/dev/null 2>&1 || kube "$C1" create ns off >/dev/null
  kube "$C1" label ns off istio-injection=disabled --overwrite >/dev/null
  injected() { has "$(optout "$@")" '(^|,)istio-proxy(,|$)'; }
  untouched() { [ "$(optout "$@")" = "$2" ]; }
  until_true 10 'a pod of the namespace' injected "$NS" a '{}' '{}'
  untouched "$NS" b "{$l\"false\"}}" '{}' || fail 'label false'
  untouched "$NS" c "{$a\"false\"}}" '{}' || fail 'annotation false'
  injected "$NS" d "{$l\"true\"},$a\"false\"}}" '{}' || fail 'the label wins'
  untouched "$NS" e '{}' '{"hostNetwork":true}' || fail "the host's network"
  untouched plain2 f '{}' '{}' || fail 'a namespace without the label'
  injected plain2 g "{$l\"true\"}}" '{}' || fail 'a pod that asks, in a namespace without the label'
  injected plain2 h '{"labels":{"istio.io/rev":"default"}}' '{}' || fail 'a pod with a revision'
  untouched off i "{$l\"true\"}}" '{}' || fail 'a namespace that is off'
  untouched kube-system j "{$l\"true\"}}" '{}' || fail 'kube-system'
  has "$(kube "$C1" -n "$NS" run k --image=x --dry-run=server --overrides='{"metadata":{"annotations":{"sidecar.istio.io/interceptionMode":"TPROXY"}}}' 2>&1)" 'TPROXY.*interceptionMode.*REDIRECT' || fail 'TPROXY is refused'
  # A template of the user's own, laid over the sidecar's.
  local config
  config=$(kube "$C1" -n istio-system get cm istio-sidecar-injector -o jsonpath='{.data.config}')
  put_config() { jq -n --arg c "$1" '{data: {config: $c}}' >"$work/config.json" && kube "$C1" -n istio-system patch cm istio-sidecar-injector --type merge --patch-file "$work/config.json" >/dev/null || fail 'the ConfigMap'; }
  templated() { kube "$C1" -n "$NS" run t --image=x --dry-run=server -o json --overrides='{"metadata":{"annotations":{"inject.istio.io/templates":"sidecar,extra"}}}' 2>&1; }
  has "$(templated)" 'no template is called "extra"; there are sidecar, gateway' || fail 'an unknown template is refused'
  put_config "$config"$'\ntemplates:\n  extra: |\n    metadata: {labels: {extra: "{{ .ObjectMeta.Name }}-{{ .Values.global.multiCluster.clusterName }}"}}\n    spec: {containers: [{name: istio-proxy, env: [{name: EXTRA, value: "1"}]}]}\n'
  extra() { templated | jq -e '.metadata.labels.extra == "t-'"$C1"'" and any((.spec.initContainers + .spec.containers)[]; .name == "istio-proxy" and any(.env[]; .name == "EXTRA"))'; }
  until_true 20 'the template is laid over' extra
  put_config "$config"
  kube "$C1" delete ns plain2 off --wait=false >/dev/null
  pass 'optouts: labels, annotations, namespaces, a template; TPROXY refused'
}

again() {
  step 'A namespace goes and comes again; a port changes its protocol'
  one_web() { [ "$(sleeper curl -s --max-time 3 "web.$NS:8080" | cut -d' ' -f1)" = "$1" ]; }
  kube "$C1" delete ns "$NS" >/dev/null || fail 'deleting the namespace'
  # The other cluster's pods serve nobody here: the name is gone with its Service.
  until_true 30 'no answer' eval '! sleeper curl -sf -o /dev/null --max-time 3 "web.$NS:8080"'
  mesh_ns
  by_two() { local o; o=$(many 20 "web.$NS:8080"); has "$o" "^$C1 web-" && has "$o" "^$C2 web-"; }
  until_true 30 'answers from both clusters' by_two
  # http becomes tcp, then http again.
  kind() { kube "$C1" -n "$NS" patch svc web --type json -p '[{"op":"replace","path":"/spec/ports/0/name","value":"'"$1"'"}]' >/dev/null && kube "$C2" -n "$NS" patch svc web --type json -p '[{"op":"replace","path":"/spec/ports/0/name","value":"'"$1"'"}]' >/dev/null; }
  last_line() { many 2 "web.$NS:8080" >/dev/null; kube "$C1" -n sample logs deploy/sleep -c istio-proxy --tail=20 | grep "outbound|8080||web.$NS" | tail -1 | grep -E -- "$1"; }
  until_true 20 'HTTP' last_line '"GET / HTTP/1.1" 200'
  kind tcp-web
  until_true 20 'TCP' last_line '"- - -" 0'
  until_true 20 'answers from both clusters' by_two
  kind http
  until_true 20 'HTTP again' last_line '"GET / HTTP/1.1" 200'
  until_true 20 'answers from both clusters' by_two
  pass 'again: namespace, protocol of a port'
}

retries() {
  step 'Timeouts and retries'
  local out n t
  for c in "$C1" "$C2"; do kube "$c" -n "$NS" get deploy web >/dev/null; done
  kube "$C2" -n "$NS" scale deploy web --replicas=0 >/dev/null
  rule() {
    kube "$C1" -n "$NS" apply -f - >/dev/null <<YAML
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - match: [{uri: {prefix: /cgi-bin/flaky}}]
    route: [{destination: {host: web, port: {number: 8080}}}]
    retries: $1
  - match: [{uri: {prefix: /cgi-bin/hang}, headers: {x-try: {exact: short}}}]
    route: [{destination: {host: web, port: {number: 8080}}}]
    retries: {attempts: 2, perTryTimeout: 1s, retryOn: "5xx"}
  - match: [{uri: {prefix: /cgi-bin/hang}}]
    route: [{destination: {host: web, port: {number: 8080}}}]
    timeout: 1s
    retries: {attempts: 0}
  - route: [{destination: {host: web, port: {number: 8080}}}]
YAML
  }
  flaky() { many 12 -o /dev/null -w '%{http_code}\n' "web.$NS:8080/cgi-bin/flaky"; }
  rule '{attempts: 0}'
  until_true 60 'only one server' eval '[ "$(many 8 "web.$NS:8080" | grep -c "^$C1")" -eq 8 ]'
  until_true 20 'errors come through without retries' eval '[ "$(flaky | grep -c 500)" -ge 6 ]'
  rule '{attempts: 3, retryOn: "5xx"}'
  until_true 20 'no error with three retries' eval '[ "$(flaky | grep -c 200)" -eq 12 ]'
  timed() { sleeper curl -s -o /dev/null --max-time 15 -w '%{http_code} %{time_total}' "$@" "web.$NS:8080/cgi-bin/hang"; }
  out=$(timed)
  has "$out" '^504 (1\.[0-9]*|0\.99)' || fail "timeout of 1 s: $out"
  n=$(hits hang)
  out=$(timed -H 'x-try: short')
  has "$out" '^504 [34]\.' || fail "three tries of 1 s: $out"
  t=$(($(hits hang) - n))
  [ "$t" -eq 3 ] || fail "the server was asked $t times, not 3"
  kube "$C1" -n "$NS" delete virtualservice web >/dev/null
  kube "$C2" -n "$NS" scale deploy web --replicas=1 >/dev/null
  pass 'retries: of errors, per try, and the timeout of all'
}
