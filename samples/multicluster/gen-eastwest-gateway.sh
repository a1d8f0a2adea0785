#!/bin/sh
# Prints the IstioOperator of an east-west gateway, to be piped into `carrick install -y -f -`.
set -eu

usage() {
  cat >&2 <<EOF
usage: $0 [--mesh MESH] [--cluster CLUSTER] --network NETWORK [--revision REVISION] [--single-cluster]
  --single-cluster  for one cluster: network name and mesh are left out of the gateway's view
EOF
  exit 2
}

mesh='' cluster='' network='' revision='' single=0
while [ $# -gt 0 ]; do
  case $1 in
    --mesh | --cluster | --network | --revision)
      [ $# -ge 2 ] && [ -n "$2" ] || { echo "$0: $1 needs a value" >&2; usage; } ;;
  esac
  case $1 in
    --mesh) mesh=$2; shift 2 ;;
    --cluster) cluster=$2; shift 2 ;;
    --network) network=$2; shift 2 ;;
    --revision) revision=$2; shift 2 ;;
    --single-cluster) single=1; shift ;;
    *) echo "$0: unknown argument $1" >&2; usage ;;
  esac
done
if [ $single -eq 0 ]; then
  [ -n "$network" ] || { echo "$0: --network is needed" >&2; usage; }
fi

cat <<EOF
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
metadata:
  name: eastwest
spec:
  revision: "$revision"
  profile: empty
  components:
    ingressGateways:
    - name: istio-eastwestgateway
      label:
        istio: eastwestgateway
        app: istio-eastwestgateway
EOF
if [ $single -eq 0 ]; then
  cat <<EOF
        topology.istio.io/network: $network
      enabled: true
      k8s:
        env:
        # the gateway sends only to endpoints of this network, or gateways would call one another
        - name: ISTIO_META_REQUESTED_NETWORK_VIEW
          value: $network
EOF
else
  cat <<EOF
      enabled: true
      k8s:
EOF
fi
cat <<EOF
        service:
          ports:
          - name: status-port
            port: 15021
            targetPort: 15021
          - name: tls
            port: 15443
            targetPort: 15443
          - name: tls-istiod
            port: 15012
            targetPort: 15012
          - name: tls-webhook
            port: 15017
            targetPort: 15017
  values:
    gateways:
      istio-ingressgateway:
        injectionTemplate: gateway
EOF
if [ $single -eq 0 ]; then
  cat <<EOF
    global:
      meshID: $mesh
      network: $network
      multiCluster:
        clusterName: $cluster
EOF
fi
