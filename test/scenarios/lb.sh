# Scenarios of the load balancer: pools, requests, conflicts. Sourced by test/scenarios.sh.

lb_service() { # NAME PORT ANNOTATIONS [SPEC]: a LoadBalancer Service of web
  kube "$C1" -n "$NS" apply -f - >/dev/null <<YAML || fail "Service $1"
apiVersion: v1
kind: Service
metadata: {name: $1, annotations: {$3}}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{name: http, port: $2, targetPort: 8080}]${4:+, $4}}
YAML
}
lb_pool() { # NAME ADDRESSES AUTOASSIGN
  kube "$C1" apply -f - >/dev/null <<YAML || fail "IPAddressPool $1"
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: $1, namespace: metallb-system}
spec: {addresses: [$2], autoAssign: $3}
YAML
}
lb_ip() { kube "$C1" -n "$NS" get svc "$1" -o jsonpath='{.status.loadBalancer.ingress[0].ip}'; }
lb_has() { [ "$(lb_ip "$1")" = "$2" ]; }
lb_event() { kube "$C1" -n "$NS" get events --field-selector "involvedObject.name=$1,reason=$2" -o jsonpath='{.items[*].message}' | grep -E -- "$3"; }
lb_answers() { lab exec client1 curl -s --max-time 3 "http://$1:$2/" | grep -q "^$C1 web-"; }

lb() {
  step 'Addresses of the load balancer'
  local device a
  lb_pool tiny 10.10.50.195-10.10.50.196 false
  lb_pool foreign 10.10.50.197/32 false
  # A pool by annotation, in both spellings; a full one; one that heals when an address is free.
  lb_service lb1 80 'metallb.universe.tf/address-pool: tiny'
  until_true 20 'the lowest address of the pool' lb_has lb1 10.10.50.195
  until_true 20 'it answers' lb_answers 10.10.50.195 80
  lb_service lb2 80 'metallb.io/address-pool: tiny'
  until_true 20 'the next address of the pool' lb_has lb2 10.10.50.196
  lb_service lb3 80 'metallb.universe.tf/address-pool: tiny'
  until_true 20 'the full pool is named' lb_event lb3 AllocationFailed 'no IPv4 address is free in IPAddressPool tiny'
  [ -z "$(lb_ip lb3)" ] || fail 'lb3 has an address of a full pool'
  kube "$C1" -n "$NS" delete svc lb1 >/dev/null
  until_true 20 'the address that was freed' lb_has lb3 10.10.50.195
  # An address that is taken, then free; one outside of all pools, then within; none at all.
  lb_service lb4 80 '' 'loadBalancerIP: 10.10.50.196'
  until_true 20 'the owner is named' lb_event lb4 AllocationFailed "10.10.50.196 .*taken by Service $NS/lb2"
  kube "$C1" -n "$NS" delete svc lb2 >/dev/null
  until_true 20 'the address asked for' lb_has lb4 10.10.50.196
  lb_service lb5 80 'metallb.universe.tf/loadBalancerIPs: 10.99.0.1'
  until_true 20 'the pools are named' lb_event lb5 AllocationFailed '10.99.0.1 .*not in one IPAddressPool.*tiny'
  kube "$C1" -n "$NS" delete svc lb3 >/dev/null
  lb_service lb5 80 'metallb.universe.tf/loadBalancerIPs: 10.10.50.195'
  until_true 20 'the address asked for by annotation' lb_has lb5 10.10.50.195
  until_true 20 'it answers' lb_answers 10.10.50.195 80
  # Two Services share an address if both say so and their ports differ.
  lb_service lb5 80 'metallb.universe.tf/loadBalancerIPs: 10.10.50.195, metallb.universe.tf/allow-shared-ip: both'
  lb_service lb6 81 'metallb.universe.tf/loadBalancerIPs: 10.10.50.195, metallb.universe.tf/allow-shared-ip: both'
  until_true 20 'the shared address' lb_has lb6 10.10.50.195
  until_true 20 'its first port' lb_answers 10.10.50.195 80
  until_true 20 'its second port' lb_answers 10.10.50.195 81
  lb_service lb7 81 'metallb.universe.tf/loadBalancerIPs: 10.10.50.195, metallb.universe.tf/allow-shared-ip: both'
  until_true 20 'the port that is taken' lb_event lb7 AllocationFailed '10.10.50.195 .*taken by'
  # Nobody gets an address of a pool that is not given out by itself: the first pool serves.
  lb_service lb8 80 ''
  until_true 20 'an address' eval '[ -n "$(lb_ip lb8)" ]'
  a=$(lb_ip lb8)
  has "$a" '^10\.10\.50\.(7[5-9]|8[0-9]|90)$' || fail "lb8 has $a"
  # A host of the LAN has an address of a pool: it is left to it, and taken when it is free.
  device=$(lab exec client1 ip -o -4 addr | awk '/10\.10\.50\./ {print $2; exit}')
  lab exec client1 ip addr add 10.10.50.197/32 dev "$device" || fail 'an address for client1'
  lb_service lb9 80 'metallb.universe.tf/address-pool: foreign'
  until_true 30 'the conflict is told' lb_event lb9 AddressConflict '10.10.50.197 is in use by another host'
  lab exec client1 ip addr del 10.10.50.197/32 dev "$device"
  until_true 60 'the address answers when it is free' lb_answers 10.10.50.197 80
  kube "$C1" -n "$NS" get events --field-selector involvedObject.kind=Service -o custom-columns=SERVICE:.involvedObject.name,REASON:.reason,MESSAGE:.message | grep -E 'lb[0-9]' | cut -c1-160
  kube "$C1" -n "$NS" delete svc lb4 lb5 lb6 lb7 lb8 lb9 >/dev/null
  kube "$C1" -n metallb-system delete ipaddresspool tiny foreign >/dev/null
  pass "lb: pools, requests, sharing, conflict"
}
