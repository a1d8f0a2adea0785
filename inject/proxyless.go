package inject

import (
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

// The template grpc-agent is for applications whose gRPC is the mesh's client itself, without a proxy:
// the agent alone, which writes a bootstrap and certificates where the application reads them.

const (
	grpcBootstrap    = "/etc/istio/proxy/grpc-bootstrap.json"
	grpcCertificates = "/var/lib/istio/data"
)

// sharedMounts are what the agent and the application have in common. The volumes are in memory: there
// is a key in one of them.
func sharedMounts() []corev1.VolumeMount {
	return []corev1.VolumeMount{{Name: "istio-xds", MountPath: "/etc/istio/proxy"}, {Name: "istio-data", MountPath: grpcCertificates}}
}

// envSNI makes gRPC send the server names that it is told to (gRFC A101); grpc-go has it off by default.
const envSNI = "GRPC_EXPERIMENTAL_XDS_SNI"

// proxylessEnv is what the agent's environment has in addition. GRPC_SNI tells the control plane that
// the application sends server names, by which gateways to other networks choose.
func proxylessEnv(apps []corev1.Container) []corev1.EnvVar {
	sni := !slices.ContainsFunc(apps, func(c corev1.Container) bool {
		return slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == envSNI && e.Value != "true" })
	})
	return []corev1.EnvVar{
		{Name: "DISABLE_ENVOY", Value: "true"},
		{Name: "GRPC_XDS_BOOTSTRAP", Value: grpcBootstrap},
		{Name: "OUTPUT_CERTS", Value: grpcCertificates},
		{Name: "ISTIO_META_GENERATOR", Value: "grpc"},
		{Name: "ISTIO_META_GRPC_SNI", Value: strconv.FormatBool(sni)},
	}
}

// shareWithApps gives the pod's own containers what gRPC reads; variables that they have stay. The
// agent is another user than the application, so what it writes is of the pod's group.
func (b *builder) shareWithApps(spec *corev1.PodSpec) {
	if spec.SecurityContext == nil {
		spec.SecurityContext = &corev1.PodSecurityContext{}
	}
	if spec.SecurityContext.FSGroup == nil {
		spec.SecurityContext.FSGroup = ptr.To[int64](proxyUID)
	}
	for i := range spec.Containers {
		c := &spec.Containers[i]
		if c.Name == proxyContainer {
			continue
		}
		for _, e := range []corev1.EnvVar{
			{Name: "GRPC_XDS_BOOTSTRAP", Value: grpcBootstrap},
			{Name: "GRPC_XDS_EXPERIMENTAL_SECURITY_SUPPORT", Value: "true"},
			{Name: envSNI, Value: "true"},
		} {
			if !slices.ContainsFunc(c.Env, func(x corev1.EnvVar) bool { return x.Name == e.Name }) {
				c.Env = append(c.Env, e)
			}
		}
		for _, m := range sharedMounts() {
			if !slices.ContainsFunc(c.VolumeMounts, func(x corev1.VolumeMount) bool { return x.MountPath == m.MountPath }) {
				m.ReadOnly = true
				c.VolumeMounts = append(c.VolumeMounts, m)
			}
		}
	}
}
