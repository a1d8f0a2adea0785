package inject

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// proxyUID is the user and group of the proxy; redirection lets them through.
const proxyUID = 1337

// proxyBinary is where the image has the agent and proxy.
const proxyBinary = "/usr/local/bin/carrick-proxy"

// builder holds what one injection is made from.
type builder struct {
	Params
	namespace string
	workload  Workload
	in        *corev1.Pod
	ann       map[string]string
	config    *meshconfig.ProxyConfig
	apps      []corev1.Container // the pod's containers without a proxy
	own       *corev1.Container  // the istio-proxy that the pod brings along, or nil
	network   string
	role      string // the template that is built in, "" if only custom ones are wanted
	custom    []string
	overProxy []any // what custom templates lay over the proxy: parts of a Container
	overInit  []any
	gateway   bool
	proxyless bool
	native    bool

	uid, gid int64  // of the proxy, once overrides have been laid over it
	mode     string // of interception, likewise
}

func (b *builder) statusPort() int32 {
	port := b.config.GetStatusPort()
	if port == 0 {
		port = b.StatusPort
	}
	return count(b.ann, annStatusPort, port)
}

func (b *builder) interception() string {
	return text(b.ann, annInterception, b.config.GetInterceptionMode().String())
}

// hold says whether an ordinary proxy container goes first and blocks the others.
func (b *builder) hold() bool {
	if b.gateway || b.native {
		return false
	}
	if h := b.config.GetHoldApplicationUntilProxyStarts(); h != nil {
		return h.Value
	}
	return b.Hold
}

// redirect is the init container that sends the pod's traffic through the proxy. Only it has
// capabilities: NET_ADMIN for nftables, NET_RAW for the legacy iptables it may fall back to.
func (b *builder) redirect() corev1.Container {
	args := []string{
		"init",
		"-p", "15001",
		"-z", "15006",
		"-u", fmt.Sprint(b.uid),
		"-m", b.mode,
		"-i", text(b.ann, annIncludeOutIPs, b.IncludeIPRanges),
		"-x", text(b.ann, annExcludeOutIPs, b.ExcludeIPRanges),
		"-b", text(b.ann, annIncludeInPorts, b.IncludeInboundPorts),
		"-d", joinPorts("15090,15021", fmt.Sprint(b.statusPort()), text(b.ann, annExcludeInPorts, b.ExcludeInboundPorts)),
	}
	for _, o := range []struct{ flag, value string }{
		{"-o", text(b.ann, annExcludeOutPorts, b.ExcludeOutboundPorts)},
		{"-q", text(b.ann, annIncludeOutPorts, b.IncludeOutboundPorts)},
		{"-c", b.ann[annExcludeIfs]},
		{"-k", text(b.ann, annRerouteVirtIfs, b.ann[annKubevirtIfs])},
	} {
		if o.value != "" {
			args = append(args, o.flag, o.value)
		}
	}
	if b.gid != b.uid {
		args = append(args, "-g", fmt.Sprint(b.gid))
	}
	args = append(args, "--log_output_level="+text(b.ann, annAgentLogLevel, b.AgentLogLevel))
	c := corev1.Container{
		Name:            initContainer,
		Image:           b.containerImage(),
		ImagePullPolicy: b.PullPolicy,
		Command:         []string{proxyBinary},
		Args:            args,
		Resources:       b.InitResources,
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: ptr.To(b.Privileged),
			Privileged:               ptr.To(b.Privileged),
			ReadOnlyRootFilesystem:   ptr.To(true),
			RunAsNonRoot:             ptr.To(false),
			RunAsUser:                ptr.To[int64](0),
			RunAsGroup:               ptr.To[int64](0),
			Capabilities:             &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN", "NET_RAW"}, Drop: []corev1.Capability{"ALL"}},
		},
	}
	for _, k := range slices.Sorted(maps.Keys(b.config.GetProxyMetadata())) {
		c.Env = append(c.Env, corev1.EnvVar{Name: k, Value: b.config.ProxyMetadata[k]})
	}
	return c
}

// joinPorts joins comma-separated lists, each port once.
func joinPorts(lists ...string) string {
	var out []string
	for _, l := range lists {
		for _, p := range strings.Split(l, ",") {
			if p = strings.TrimSpace(p); p != "" && p != "0" && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return strings.Join(out, ",")
}

func (b *builder) engine() string { return text(b.ann, annEngine, b.Engine) }

func (b *builder) containerImage() string {
	if image := b.ann[annProxyImage]; image != "" {
		return image
	}
	if b.proxyless {
		return b.image(EngineCarrick)
	}
	return b.image(b.engine())
}

// proxy is the container istio-proxy.
func (b *builder) proxy() (corev1.Container, error) {
	role := "sidecar"
	if b.gateway {
		role = "router"
	}
	args := []string{
		"proxy", role,
		"--domain", "$(POD_NAMESPACE).svc." + b.DNSDomain,
		"--proxyLogLevel=" + text(b.ann, annLogLevel, b.LogLevel),
		"--proxyComponentLogLevel=" + text(b.ann, annComponentLogLevel, b.ComponentLogLevel),
		"--log_output_level=" + text(b.ann, annAgentLogLevel, b.AgentLogLevel),
	}
	if c := b.config.GetConcurrency(); c != nil {
		args = append(args, "--concurrency", fmt.Sprint(c.Value))
	}
	if b.LogAsJSON {
		args = append(args, "--log_as_json")
	}
	env, err := b.env()
	if err != nil {
		return corev1.Container{}, err
	}
	res, err := b.resources()
	if err != nil {
		return corev1.Container{}, err
	}
	mounts, err := b.mounts()
	if err != nil {
		return corev1.Container{}, err
	}
	c := corev1.Container{
		Name:            proxyContainer,
		Image:           b.containerImage(),
		ImagePullPolicy: b.PullPolicy,
		Command:         []string{proxyBinary},
		Args:            args,
		Env:             env,
		Resources:       res,
		VolumeMounts:    mounts,
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: ptr.To(b.Privileged),
			Privileged:               ptr.To(b.Privileged),
			ReadOnlyRootFilesystem:   ptr.To(true),
			RunAsNonRoot:             ptr.To(true),
			RunAsUser:                ptr.To[int64](proxyUID),
			RunAsGroup:               ptr.To[int64](proxyUID),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile:           b.Seccomp.DeepCopy(),
		},
	}
	if !b.proxyless {
		c.Ports = []corev1.ContainerPort{{Name: "http-envoy-prom", ContainerPort: 15090, Protocol: corev1.ProtocolTCP}}
	}
	b.probes(&c)
	return c, nil
}

func (b *builder) probes(c *corev1.Container) {
	port := int32(15021)
	wait := []string{proxyBinary, "wait"}
	if b.proxyless { // no proxy has 15021: the agent is asked itself
		port = b.statusPort()
		wait = append(wait, fmt.Sprintf("--url=http://localhost:%d/healthz/ready", port))
	}
	ready := func() corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz/ready", Port: intstr.FromInt32(port)}}
	}
	if b.statusPort() != 0 {
		c.ReadinessProbe = &corev1.Probe{
			ProbeHandler:        ready(),
			InitialDelaySeconds: count(b.ann, annReadyDelay, b.Readiness.InitialDelaySeconds),
			PeriodSeconds:       count(b.ann, annReadyPeriod, b.Readiness.PeriodSeconds),
			FailureThreshold:    count(b.ann, annReadyFailures, b.Readiness.FailureThreshold),
			TimeoutSeconds:      3,
		}
		// Ten minutes to become ready; as long, nothing behind a native proxy starts, and
		// readiness is asked every second in place of every 15.
		if b.StartupFailures > 0 {
			c.StartupProbe = &corev1.Probe{ProbeHandler: ready(), PeriodSeconds: 1, TimeoutSeconds: 3, FailureThreshold: b.StartupFailures}
		}
	}
	if b.native {
		c.RestartPolicy = ptr.To(corev1.ContainerRestartPolicyAlways)
	}
	c.Lifecycle = b.Lifecycle.DeepCopy()
	if b.hold() {
		if c.Lifecycle == nil {
			c.Lifecycle = &corev1.Lifecycle{}
		}
		if c.Lifecycle.PostStart == nil {
			c.Lifecycle.PostStart = &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: wait}}
		}
	}
}

// resources are those of the values, or, if one annotation is there, those of annotations only.
func (b *builder) resources() (corev1.ResourceRequirements, error) {
	var r corev1.ResourceRequirements
	found := false
	for _, s := range []struct {
		annotation string
		list       *corev1.ResourceList
		name       corev1.ResourceName
	}{
		{annCPU, &r.Requests, corev1.ResourceCPU}, {annMemory, &r.Requests, corev1.ResourceMemory},
		{annCPULimit, &r.Limits, corev1.ResourceCPU}, {annMemoryLimit, &r.Limits, corev1.ResourceMemory},
	} {
		v, ok := b.ann[s.annotation]
		if !ok {
			continue
		}
		q, err := resource.ParseQuantity(v)
		if err != nil {
			return r, fmt.Errorf("annotation %s: %q: %w", s.annotation, v, err)
		}
		if *s.list == nil {
			*s.list = corev1.ResourceList{}
		}
		(*s.list)[s.name] = q
		found = true
	}
	if !found {
		return b.Resources, nil
	}
	return r, nil
}

// env is the proxy container's environment, in Istio's names.
func (b *builder) env() ([]corev1.EnvVar, error) {
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
	}
	config, err := encodeProxyConfig(b.config)
	if err != nil {
		return nil, err
	}
	ports := []corev1.ContainerPort{}
	var names []string
	for _, c := range b.apps {
		ports = append(ports, c.Ports...)
		names = append(names, c.Name)
	}
	if b.own != nil {
		ports = append(ports, b.own.Ports...)
	}
	podPorts, err := json.Marshal(ports)
	if err != nil {
		return nil, fmt.Errorf("encoding ports: %w", err)
	}
	env := []corev1.EnvVar{
		{Name: "PILOT_CERT_PROVIDER", Value: "istiod"},
		{Name: "CA_ADDR", Value: b.CAAddress},
		field("POD_NAME", "metadata.name"),
		field("POD_NAMESPACE", "metadata.namespace"),
		field("INSTANCE_IP", "status.podIP"),
		field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
		field("HOST_IP", "status.hostIP"),
		{Name: "ISTIO_CPU_LIMIT", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu"}}},
		{Name: "PROXY_CONFIG", Value: config},
		{Name: "ISTIO_META_POD_PORTS", Value: string(podPorts)},
		{Name: "ISTIO_META_APP_CONTAINERS", Value: strings.Join(names, ",")},
		{Name: "ISTIO_META_CLUSTER_ID", Value: b.ClusterID},
		field("ISTIO_META_NODE_NAME", "spec.nodeName"),
		{Name: "ISTIO_META_INTERCEPTION_MODE", Value: b.interception()},
		{Name: "ISTIO_META_WORKLOAD_NAME", Value: b.workload.Name},
		{Name: "ISTIO_META_OWNER", Value: b.workload.owner(or(b.namespace, "default"))},
		{Name: "ISTIO_META_MESH_ID", Value: b.MeshID},
		{Name: "TRUST_DOMAIN", Value: b.TrustDomain},
		{Name: "CARRICK_PROXY_ENGINE", Value: b.engine()},
	}
	if b.proxyless {
		env = append(env, proxylessEnv(b.apps)...)
	}
	if b.network != "" {
		env = append(env, corev1.EnvVar{Name: "ISTIO_META_NETWORK", Value: b.network})
	}
	for _, k := range slices.Sorted(maps.Keys(b.config.GetProxyMetadata())) {
		e := corev1.EnvVar{Name: k, Value: b.config.ProxyMetadata[k]}
		if i := slices.IndexFunc(env, func(x corev1.EnvVar) bool { return x.Name == k }); i >= 0 {
			env[i] = e
		} else {
			env = append(env, e)
		}
	}
	return env, nil
}

func (b *builder) mounts() ([]corev1.VolumeMount, error) {
	m := []corev1.VolumeMount{
		{Name: "workload-socket", MountPath: "/var/run/secrets/workload-spiffe-uds"},
		{Name: "istiod-ca-cert", MountPath: "/var/run/secrets/istio", ReadOnly: true},
		{Name: "istio-ca-crl", MountPath: "/var/run/secrets/istio/crl", ReadOnly: true},
		{Name: "istio-token", MountPath: "/var/run/secrets/tokens", ReadOnly: true},
		{Name: "istio-envoy", MountPath: "/etc/istio/proxy"},
		{Name: "istio-podinfo", MountPath: "/etc/istio/pod", ReadOnly: true},
	}
	if b.proxyless {
		m = slices.Replace(m, 4, 5, sharedMounts()...)
	}
	if v := b.ann[annVolumeMount]; v != "" {
		var own map[string]corev1.VolumeMount
		if err := json.Unmarshal([]byte(v), &own); err != nil {
			return nil, fmt.Errorf("annotation %s: want a JSON object of name to volume mount: %w", annVolumeMount, err)
		}
		for _, name := range slices.Sorted(maps.Keys(own)) {
			vm := own[name]
			vm.Name = name
			m = append(m, vm)
		}
	}
	return m, nil
}

// volumes adds what the mounts name, unless the pod has a volume of that name.
func (b *builder) volumes(out *corev1.Pod, st *status) error {
	add := func(v corev1.Volume) {
		if !slices.ContainsFunc(out.Spec.Volumes, func(w corev1.Volume) bool { return w.Name == v.Name }) {
			out.Spec.Volumes = append(out.Spec.Volumes, v)
		}
		st.Volumes = append(st.Volumes, v.Name)
	}
	item := func(path string) corev1.DownwardAPIVolumeFile {
		return corev1.DownwardAPIVolumeFile{Path: path, FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata." + path}}
	}
	empty := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
	add(corev1.Volume{Name: "workload-socket", VolumeSource: empty})
	add(corev1.Volume{Name: "istiod-ca-cert", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: "istio-ca-root-cert"}}}})
	add(corev1.Volume{Name: "istio-ca-crl", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: "istio-ca-crl"}, Optional: ptr.To(true)}}})
	add(corev1.Volume{Name: "istio-token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
			Audience: "istio-ca", ExpirationSeconds: ptr.To[int64](43200), Path: "istio-token"}}}}}})
	memory := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}
	if b.proxyless {
		for _, vm := range sharedMounts() {
			add(corev1.Volume{Name: vm.Name, VolumeSource: *memory.DeepCopy()})
		}
	} else {
		add(corev1.Volume{Name: "istio-envoy", VolumeSource: memory})
	}
	add(corev1.Volume{Name: "istio-podinfo", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
		Items: []corev1.DownwardAPIVolumeFile{item("labels"), item("annotations")}}}})
	if v := b.ann[annVolume]; v != "" {
		var own map[string]corev1.VolumeSource
		if err := json.Unmarshal([]byte(v), &own); err != nil {
			return fmt.Errorf("annotation %s: want a JSON object of name to volume: %w", annVolume, err)
		}
		for _, name := range slices.Sorted(maps.Keys(own)) {
			add(corev1.Volume{Name: name, VolumeSource: own[name]})
		}
	}
	return nil
}
