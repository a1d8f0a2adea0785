package node

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/carrick-mesh/carrick/lab/pki"
	"github.com/carrick-mesh/carrick/lab/topo"
)

const (
	cniDir     = binDir + "/cni"
	criSocket  = "/run/containerd/containerd.sock"
	pauseImage = "docker.io/lab/pause:1"
)

// configs returns the files that the node's programs read, by path.
func configs(t *topo.Topology, c *topo.Cluster, n *topo.Node, group string) (map[string]string, error) {
	fill := strings.NewReplacer(
		"@BIN", binDir, "@CNI", cniDir, "@PKI", pki.Dir, "@SOCKET", criSocket, "@PAUSE", pauseImage,
		"@NAME", n.Name, "@DNS", c.DNS.String(), "@PODNET", c.PodNet.String(), "@MODE", t.Proxy, "@GROUP", group)
	conflist, err := cni(t, n)
	if err != nil {
		return nil, err
	}
	return map[string]string{
		"/etc/cni/net.d/10-lab.conflist": conflist,
		runDir + "/containerd.toml":      fill.Replace(containerdConfig),
		runDir + "/kubelet.yaml":         fill.Replace(kubeletConfig),
		runDir + "/proxy.yaml":           fill.Replace(proxyConfig),
	}, nil
}

// cni gives each pod a veth of its own and a route through the node; bridges
// play no part, so bridge-nf-call-iptables does not either.
func cni(t *topo.Topology, n *topo.Node) (string, error) {
	type obj = map[string]any
	var blocks []any // one set: a pod gets one address, from whichever block has room
	for _, p := range n.Pods {
		blocks = append(blocks, obj{"subnet": p.String()})
	}
	b, err := json.MarshalIndent(obj{
		"cniVersion": "1.0.0",
		"name":       "lab",
		"plugins": []any{
			obj{"type": "ptp", "ipMasq": false, "mtu": t.PodMTU, "ipam": obj{
				"type": "host-local", "dataDir": "/run/cni-ipam",
				"ranges": []any{blocks},
				"routes": []any{obj{"dst": "0.0.0.0/0"}},
			}},
			obj{"type": "portmap", "capabilities": obj{"portMappings": true}},
		},
	}, "", " ")
	return string(b), err
}

// No CAP_SYS_RESOURCE is needed (restrict_oom_score_adj, oom_score), and no
// AppArmor profile is loaded into the machine's kernel.
const containerdConfig = `version = 4
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs", "io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "@SOCKET"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "@PAUSE"
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = "/etc/containerd/certs.d"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["@CNI"]
    conf_dir = "/etc/cni/net.d"
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = "@BIN/runc"
        SystemdCgroup = false
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: "@PKI/ca.crt"}}
authorization: {mode: Webhook}
tlsCertFile: "@PKI/kubelet.crt"
tlsPrivateKeyFile: "@PKI/kubelet.key"
clusterDNS: ["@DNS"]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
containerRuntimeEndpoint: unix://@SOCKET
cgroupDriver: cgroupfs
cgroupsPerQOS: true
cgroupRoot: "@GROUP"
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
evictionHard: {memory.available: "100Mi", nodefs.available: "1%", imagefs.available: "1%", nodefs.inodesFree: "1%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
maxPods: 200
nodeStatusUpdateFrequency: 5s
syncFrequency: 10s
volumeStatsAggPeriod: 0s
serializeImagePulls: false
shutdownGracePeriod: 0s
`

// The conntrack zeroes leave machine-wide sysctls alone.
const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: @MODE
clientConnection: {kubeconfig: "@PKI/proxy.conf"}
clusterCIDR: "@PODNET"
hostnameOverride: "@NAME"
bindAddress: 0.0.0.0
nodePortAddresses: ["primary"]
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
iptables: {minSyncPeriod: 100ms, syncPeriod: 30s}
nftables: {minSyncPeriod: 100ms, syncPeriod: 30s}
`

// programs lists what runs on a node, in the order of starting.
func programs(c *topo.Cluster, n *topo.Node) []*program {
	kube := binDir + "/kube"
	ready := serverReady(c.Server())
	ps := []*program{
		{name: "containerd", argv: []string{binDir + "/containerd", "-c", runDir + "/containerd.toml", "-l", "warn"}},
	}
	if n.ControlPlane {
		ps = append(ps,
			&program{name: "etcd", argv: []string{kube, "etcd", "/var/lib/etcd", "http://127.0.0.1:2379", "http://127.0.0.1:2380"}},
			&program{name: "kube-apiserver", argv: apiServer(kube, c, n)},
			&program{name: "kube-controller-manager", argv: controllerManager(kube), after: ready},
			&program{name: "kube-scheduler", argv: scheduler(kube), after: ready})
	}
	return append(ps,
		&program{name: "kubelet", after: socketExists(criSocket), argv: []string{kube, "kubelet",
			"--config=" + runDir + "/kubelet.yaml",
			"--kubeconfig=" + pki.Dir + "/kubelet.conf",
			"--hostname-override=" + n.Name,
			"--node-ip=" + n.Address.String(),
			fmt.Sprintf("--node-labels=topology.kubernetes.io/region=%s,topology.kubernetes.io/zone=%s", c.Name, n.Name)}},
		&program{name: "kube-proxy", after: ready, argv: []string{kube, "kube-proxy", "--config=" + runDir + "/proxy.yaml"}})
}

func apiServer(kube string, c *topo.Cluster, n *topo.Node) []string {
	const p = pki.Dir
	return []string{kube, "kube-apiserver",
		"--etcd-servers=http://127.0.0.1:2379",
		"--secure-port=6443", "--bind-address=0.0.0.0", "--advertise-address=" + n.Address.String(),
		"--service-cluster-ip-range=" + c.ServiceNet.String(),
		"--tls-cert-file=" + p + "/apiserver.crt", "--tls-private-key-file=" + p + "/apiserver.key",
		"--client-ca-file=" + p + "/ca.crt",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--kubelet-client-certificate=" + p + "/apiserver-kubelet.crt", "--kubelet-client-key=" + p + "/apiserver-kubelet.key",
		"--kubelet-certificate-authority=" + p + "/ca.crt", "--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + p + "/sa.pub", "--service-account-signing-key-file=" + p + "/sa.key",
		"--requestheader-client-ca-file=" + p + "/front-proxy-ca.crt", "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + p + "/front-proxy.crt", "--proxy-client-key-file=" + p + "/front-proxy.key",
		"--allow-privileged=true", "--profiling=false", "--event-ttl=30m", "--endpoint-reconciler-type=lease"}
}

func controllerManager(kube string) []string {
	const p = pki.Dir
	return []string{kube, "kube-controller-manager",
		"--kubeconfig=" + p + "/kcm.conf", "--authentication-kubeconfig=" + p + "/kcm.conf", "--authorization-kubeconfig=" + p + "/kcm.conf",
		"--use-service-account-credentials=true", "--service-account-private-key-file=" + p + "/sa.key",
		"--root-ca-file=" + p + "/ca.crt",
		"--cluster-signing-cert-file=" + p + "/ca.crt", "--cluster-signing-key-file=" + p + "/ca.key",
		"--requestheader-client-ca-file=" + p + "/front-proxy-ca.crt", "--client-ca-file=" + p + "/ca.crt",
		"--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false",
		"--kube-api-qps=500", "--kube-api-burst=1000",
		"--allocate-node-cidrs=false", // the CNI configuration has them
		"--node-monitor-period=2s", "--node-monitor-grace-period=20s"}
}

func scheduler(kube string) []string {
	const p = pki.Dir
	return []string{kube, "kube-scheduler",
		"--kubeconfig=" + p + "/sched.conf", "--authentication-kubeconfig=" + p + "/sched.conf", "--authorization-kubeconfig=" + p + "/sched.conf",
		"--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false"}
}
