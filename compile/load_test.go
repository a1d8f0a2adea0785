package compile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	"sigs.k8s.io/yaml"

	"github.com/carrick-mesh/carrick/mesh"
)

// object is what tests need of a Kubernetes object, in Kubernetes' own shape.
type object struct {
	Cluster  string `json:"cluster"` // the first of a file holds until another is named
	Kind     string `json:"kind"`
	Metadata struct {
		Name, Namespace   string
		Labels            map[string]string
		Annotations       map[string]string
		CreationTimestamp time.Time
	} `json:"metadata"`
	Spec   json.RawMessage   `json:"spec"`
	Status json.RawMessage   `json:"status"`
	Data   map[string]string `json:"data"`
	Ports  []struct {
		Name string
		Port uint16
	} `json:"ports"`
	Endpoints []struct {
		Addresses  []string
		Conditions struct{ Ready, Serving, Terminating *bool }
		TargetRef  struct{ Name string }
		NodeName   string
	} `json:"endpoints"`
}

// load reads YAML documents as the mesh's events.
func load(t testing.TB, text []byte) (events []mesh.Event) {
	t.Helper()
	cluster := ""
	for i, doc := range strings.Split("\n"+string(text), "\n---") {
		if strings.TrimSpace(doc) == "" {
			continue
		}
		var o object
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatalf("document %d: %v", i, err)
		}
		if o.Cluster != "" {
			cluster = o.Cluster
		}
		if o.Kind == "" {
			continue
		}
		x, err := o.mesh(cluster)
		if err != nil {
			t.Fatalf("document %d: %v", i, err)
		}
		events = append(events, mesh.Event{Object: x})
	}
	return events
}

func loadFile(t testing.TB, name string) []mesh.Event {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return load(t, b)
}

func (o *object) mesh(cluster string) (mesh.Object, error) {
	m := o.Metadata
	if m.Namespace == "" {
		m.Namespace = "default"
	}
	meta := mesh.Meta{Cluster: cluster, Namespace: m.Namespace, Name: m.Name, Labels: m.Labels, Created: m.CreationTimestamp}
	spec := func(x proto.Message) error { return protojson.Unmarshal(o.Spec, x) }
	switch o.Kind {
	case "Namespace":
		return &mesh.Namespace{Cluster: cluster, Name: m.Name, Labels: m.Labels, Distribution: mesh.ParseDistribution(m.Annotations["networking.istio.io/traffic-distribution"])}, nil
	case "Node":
		var status struct{ Addresses []struct{ Address string } }
		n := &mesh.Node{Cluster: cluster, Name: m.Name, Locality: mesh.LocalityOf(m.Labels), Labels: m.Labels}
		err := unmarshal(o.Status, &status)
		for _, a := range status.Addresses {
			n.Address = a.Address
		}
		return n, err
	case "Service":
		return o.service(meta)
	case "EndpointSlice":
		s := &mesh.EndpointSlice{Cluster: cluster, Namespace: m.Namespace, Name: m.Name, Service: m.Labels["kubernetes.io/service-name"]}
		for _, p := range o.Ports {
			s.Ports = append(s.Ports, mesh.SlicePort{Name: p.Name, Number: p.Port})
		}
		for _, e := range o.Endpoints {
			ready := e.Conditions.Ready == nil || *e.Conditions.Ready
			s.Endpoints = append(s.Endpoints, mesh.SliceEndpoint{Addresses: e.Addresses, Ready: ready, Serving: ready, Pod: e.TargetRef.Name, Node: e.NodeName})
		}
		return s, nil
	case "Pod":
		return o.pod(meta)
	case "Gateway":
		x := &networking.Gateway{}
		return &mesh.Gateway{Meta: meta, Spec: x}, spec(x)
	case "VirtualService":
		x := &networking.VirtualService{}
		return &mesh.VirtualService{Meta: meta, Spec: x}, spec(x)
	case "DestinationRule":
		x := &networking.DestinationRule{}
		return &mesh.DestinationRule{Meta: meta, Spec: x}, spec(x)
	case "PeerAuthentication":
		x := &security.PeerAuthentication{}
		return &mesh.PeerAuthentication{Meta: meta, Spec: x}, spec(x)
	case "ConfigMap":
		x := &meshconfig.MeshConfig{}
		j, err := yaml.YAMLToJSON([]byte(o.Data["mesh"]))
		if err != nil {
			return nil, err
		}
		return &mesh.MeshConfig{Cluster: cluster, Spec: x}, protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(j, x)
	case "Secret":
		return &mesh.Credential{Cluster: cluster, Namespace: m.Namespace, Name: m.Name, Cert: []byte(o.Data["tls.crt"]), PrivateKey: []byte(o.Data["tls.key"]), CA: []byte(o.Data["ca.crt"])}, nil
	}
	return nil, fmt.Errorf("kind %q", o.Kind)
}

func (o *object) service(m mesh.Meta) (*mesh.Service, error) {
	var spec struct {
		Type         string
		ClusterIP    string
		ExternalName string

		InternalTrafficPolicy, TrafficDistribution string

		Selector map[string]string
		Ports    []struct {
			Name, Protocol, AppProtocol string
			Port, NodePort              uint16
			TargetPort                  any
		}
	}
	var status struct {
		LoadBalancer struct{ Ingress []struct{ IP string } }
	}
	if err := unmarshal(o.Spec, &spec); err != nil {
		return nil, err
	}
	if err := unmarshal(o.Status, &status); err != nil {
		return nil, err
	}
	s := &mesh.Service{Cluster: m.Cluster, Namespace: m.Namespace, Name: m.Name, Labels: m.Labels, Selector: spec.Selector, Type: mesh.ServiceType(spec.Type), Created: m.Created, ExternalName: spec.ExternalName}
	if s.Type == "" {
		s.Type = mesh.ClusterIP
	}
	s.NodeLocal = spec.InternalTrafficPolicy == "Local"
	s.Distribution = mesh.ParseDistribution(spec.TrafficDistribution)
	if text, ok := o.Metadata.Annotations["traffic.istio.io/nodeSelector"]; ok {
		if err := json.Unmarshal([]byte(text), &s.NodeSelector); err != nil {
			return nil, err
		}
	}
	if e := o.Metadata.Annotations["networking.istio.io/exportTo"]; e != "" {
		s.ExportTo = strings.Split(e, ",")
	}
	switch spec.ClusterIP {
	case "":
	case "None":
		s.Headless = true
	default:
		s.ClusterIPs = strings.Split(spec.ClusterIP, ",")
	}
	for _, i := range status.LoadBalancer.Ingress {
		s.Addresses = append(s.Addresses, i.IP)
	}
	for _, p := range spec.Ports {
		q := mesh.ServicePort{Name: p.Name, Number: p.Port, Transport: p.Protocol, AppProtocol: p.AppProtocol, NodePort: p.NodePort}
		switch x := p.TargetPort.(type) {
		case float64:
			q.TargetPort = uint16(x)
		case string:
			q.TargetName = x
		}
		s.Ports = append(s.Ports, q)
	}
	return s, nil
}

func (o *object) pod(m mesh.Meta) (*mesh.Pod, error) {
	var spec struct {
		ServiceAccountName, NodeName string
		Containers                   []struct {
			Ports []struct {
				Name          string
				ContainerPort uint16
			}
		}
	}
	var status struct{ PodIP string }
	if err := unmarshal(o.Spec, &spec); err != nil {
		return nil, err
	}
	if err := unmarshal(o.Status, &status); err != nil {
		return nil, err
	}
	p := &mesh.Pod{Cluster: m.Cluster, Namespace: m.Namespace, Name: m.Name, Labels: m.Labels, ServiceAccount: spec.ServiceAccountName, Node: spec.NodeName, IPs: strings.Split(status.PodIP, ","), Workload: o.Metadata.Annotations["workload"], Ready: true}
	if p.ServiceAccount == "" {
		p.ServiceAccount = "default"
	}
	for _, c := range spec.Containers {
		for _, q := range c.Ports {
			p.Ports = append(p.Ports, mesh.PodPort{Name: q.Name, Number: q.ContainerPort})
		}
	}
	return p, nil
}

func unmarshal(b json.RawMessage, x any) error {
	if len(bytes.TrimSpace(b)) == 0 {
		return nil
	}
	return json.Unmarshal(b, x)
}
