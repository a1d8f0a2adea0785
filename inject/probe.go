package inject

import (
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// prober is what the agent does in the kubelet's place: one value of ISTIO_KUBE_APP_PROBERS,
// whose keys are paths /app-health/CONTAINER/{livez,readyz,startupz} and, of lifecycle hooks,
// /app-lifecycle/CONTAINER/{prestopz,poststartz}.
type prober struct {
	HTTPGet        *corev1.HTTPGetAction   `json:"httpGet,omitempty"`
	TCPSocket      *corev1.TCPSocketAction `json:"tcpSocket,omitempty"`
	GRPC           *corev1.GRPCAction      `json:"grpc,omitempty"`
	TimeoutSeconds int32                   `json:"timeoutSeconds,omitempty"`
}

// rewriteProbes points the containers' probes, and hooks that are HTTP requests, at the agent
// and returns the agent's part as JSON, "" if there is none. The kubelet speaks plaintext, which strict mTLS refuses, and a
// redirected TCP probe would always succeed, for the proxy accepts the connection.
func rewriteProbes(spec *corev1.PodSpec, statusPort int32) (string, error) {
	probers := map[string]prober{}
	rewrite := func(containers []corev1.Container) error {
		for i := range containers {
			c := &containers[i]
			if c.Name == proxyContainer {
				continue
			}
			for _, p := range []struct {
				probe *corev1.Probe
				path  string
			}{{c.LivenessProbe, "livez"}, {c.ReadinessProbe, "readyz"}, {c.StartupProbe, "startupz"}} {
				path := "/app-health/" + c.Name + "/" + p.path
				moved, err := moveProbe(p.probe, c.Ports, path, statusPort)
				if err != nil {
					return fmt.Errorf("container %s: %w", c.Name, err)
				}
				if moved != nil {
					probers[path] = *moved
				}
			}
			if c.Lifecycle == nil {
				continue
			}
			for _, h := range []struct {
				hook *corev1.LifecycleHandler
				path string
			}{{c.Lifecycle.PreStop, "prestopz"}, {c.Lifecycle.PostStart, "poststartz"}} {
				path := "/app-lifecycle/" + c.Name + "/" + h.path
				moved, err := moveHook(h.hook, c.Ports, path, statusPort)
				if err != nil {
					return fmt.Errorf("container %s: %w", c.Name, err)
				}
				if moved != nil {
					probers[path] = *moved
				}
			}
		}
		return nil
	}
	if err := rewrite(spec.Containers); err != nil {
		return "", err
	}
	if err := rewrite(spec.InitContainers); err != nil {
		return "", err
	}
	if len(probers) == 0 {
		return "", nil
	}
	data, err := json.Marshal(probers)
	if err != nil {
		return "", fmt.Errorf("encoding probes: %w", err)
	}
	return string(data), nil
}

// moveProbe changes p into one of the agent's path and returns what p was. A probe that runs
// a command, or that names a host of its own, stays: it does not come through the proxy.
func moveProbe(p *corev1.Probe, ports []corev1.ContainerPort, path string, statusPort int32) (*prober, error) {
	if p == nil {
		return nil, nil
	}
	out := &prober{TimeoutSeconds: p.TimeoutSeconds}
	to := &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(statusPort)}
	switch {
	case p.HTTPGet != nil:
		if p.HTTPGet.Host != "" || p.HTTPGet.Port.Type == intstr.Int && p.HTTPGet.Port.IntVal == statusPort {
			return nil, nil
		}
		get := *p.HTTPGet
		port, err := portNumber(get.Port, ports)
		if err != nil {
			return nil, err
		}
		get.Port = port
		out.HTTPGet = &get
		to.HTTPHeaders = get.HTTPHeaders
	case p.TCPSocket != nil:
		if p.TCPSocket.Host != "" {
			return nil, nil
		}
		port, err := portNumber(p.TCPSocket.Port, ports)
		if err != nil {
			return nil, err
		}
		out.TCPSocket = &corev1.TCPSocketAction{Port: port}
	case p.GRPC != nil:
		out.GRPC = p.GRPC.DeepCopy()
	default:
		return nil, nil
	}
	p.ProbeHandler = corev1.ProbeHandler{HTTPGet: to}
	return out, nil
}

// hookSeconds bounds a hook's request; the kubelet gives up when the pod's grace period ends.
const hookSeconds = 3600

// moveHook does to a hook what moveProbe does to a probe. TCP hooks do nothing in Kubernetes.
func moveHook(h *corev1.LifecycleHandler, ports []corev1.ContainerPort, path string, statusPort int32) (*prober, error) {
	if h == nil || h.HTTPGet == nil {
		return nil, nil
	}
	p := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: h.HTTPGet}, TimeoutSeconds: hookSeconds}
	moved, err := moveProbe(p, ports, path, statusPort)
	if moved != nil {
		h.HTTPGet = p.HTTPGet
	}
	return moved, err
}

func portNumber(p intstr.IntOrString, ports []corev1.ContainerPort) (intstr.IntOrString, error) {
	if p.Type == intstr.Int {
		return p, nil
	}
	for _, q := range ports {
		if q.Name == p.StrVal {
			return intstr.FromInt32(q.ContainerPort), nil
		}
	}
	return p, fmt.Errorf("a probe or hook names port %q, which the container does not have", p.StrVal)
}
