package mesh

import (
	"net"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
)

// Object is what an Event is about: a pointer to one of the types of this file. All are immutable
// once given to Apply.
type Object interface {
	// Key returns what identifies the object in the mesh.
	Key() Key
}

// Kinds of objects, as in Key.Kind.
const (
	KindCluster            = "Cluster"
	KindService            = "Service"
	KindEndpointSlice      = "EndpointSlice"
	KindPod                = "Pod"
	KindNode               = "Node"
	KindNamespace          = "Namespace"
	KindGateway            = "Gateway"
	KindVirtualService     = "VirtualService"
	KindDestinationRule    = "DestinationRule"
	KindPeerAuthentication = "PeerAuthentication"
	KindMeshConfig         = "MeshConfig"
	KindCredential         = "Credential"
	KindGatewayHealth      = "GatewayHealth"
)

// Key identifies an object: its cluster (the ID, not the name of a kubeconfig context), kind,
// namespace ("" for cluster-scoped kinds) and name.
type Key struct{ Cluster, Kind, Namespace, Name string }

// String returns Kind/namespace/name, with the cluster behind an @.
func (k Key) String() string {
	s := k.Kind + "/"
	if k.Namespace != "" {
		s += k.Namespace + "/"
	}
	return s + k.Name + "@" + k.Cluster
}

// Event says that an object is there, new or changed, or, without Object, that the one of Key is gone.
// An object that equals the one held changes nothing, so a watch may repeat itself.
type Event struct {
	Key    Key // read only of what is gone
	Object Object
}

// Gone returns the Event that the object of a Key is gone.
func Gone(k Key) Event { return Event{Key: k} }

// About returns the Key of the object that the event is about.
func (e Event) About() Key {
	if e.Object == nil {
		return e.Key
	}
	return e.Object.Key()
}

// Cluster is one API server of the mesh. Its objects count from the first event, whether or not the
// Cluster itself was announced; when it is gone, all of them are. A cluster whose API server is not
// reachable is announced again with Stale, and keeps its objects.
type Cluster struct {
	ID     string
	Synced bool // all its kinds have been listed once
	Stale  bool // its API server has been lost; the objects are the last that were seen
}

// Key implements Object.
func (c *Cluster) Key() Key { return Key{c.ID, KindCluster, "", c.ID} }

// ServiceType is the type of a Service, as Kubernetes spells it.
type ServiceType string

// Types of Services.
const (
	ClusterIP    ServiceType = "ClusterIP"
	NodePort     ServiceType = "NodePort"
	LoadBalancer ServiceType = "LoadBalancer"
	ExternalName ServiceType = "ExternalName"
)

// Service is one cluster's Service. Services of one namespace and name are one host of the mesh.
type Service struct {
	Cluster, Namespace, Name string
	Labels                   map[string]string
	ExportTo                 []string // annotation networking.istio.io/exportTo, cut at commas; empty for the mesh's default
	Selector                 map[string]string
	Type                     ServiceType
	ClusterIPs               []string // without "None"
	Headless                 bool     // clusterIP None
	ExternalName             string   // of type ExternalName: the DNS name
	// Addresses are where the Service is reached from outside its cluster: of status.loadBalancer
	// and spec.externalIPs, IPs only. Whoever makes the Service resolves host names, and keeps the
	// last good answer.
	Addresses []string
	Ports     []ServicePort
	Created   time.Time
	// NodeSelector is the labels of the nodes by whose addresses and node ports the Service is reached from
	// outside its cluster, as annotation traffic.istio.io/nodeSelector says; nil without one, and empty is all.
	NodeSelector map[string]string
	NodeLocal    bool         // internalTrafficPolicy: Local
	Distribution Distribution // "" for what the namespace says
}

// Distribution says which endpoints clients prefer, as far as they are ready.
type Distribution string

// Distributions.
const (
	SameZone Distribution = "zone"
	SameNode Distribution = "node"
)

// ParseDistribution reads spec.trafficDistribution of a Service, or annotation networking.istio.io/traffic-distribution
// of it or its namespace, in any case; what is not known prefers none.
func ParseDistribution(s string) Distribution {
	switch strings.ToLower(s) {
	case "preferclose", "prefersamezone":
		return SameZone
	case "prefersamenode":
		return SameNode
	}
	return ""
}

// Key implements Object.
func (s *Service) Key() Key { return Key{s.Cluster, KindService, s.Namespace, s.Name} }

// ServicePort is one port of a Service. TargetPort or TargetName is what spec.targetPort says; both
// empty means Number.
type ServicePort struct {
	Name        string
	Number      uint16
	Transport   string // TCP (also if empty), UDP, SCTP
	AppProtocol string // "" if not said
	TargetPort  uint16
	TargetName  string
	NodePort    uint16
}

// EndpointSlice is one slice of a Service's endpoints (discovery.k8s.io/v1), of address type IPv4 or
// IPv6; slices of names are not given to the mesh.
type EndpointSlice struct {
	Cluster, Namespace, Name string
	Service                  string // of the same namespace: label kubernetes.io/service-name
	Ports                    []SlicePort
	Endpoints                []SliceEndpoint
}

// Key implements Object.
func (s *EndpointSlice) Key() Key { return Key{s.Cluster, KindEndpointSlice, s.Namespace, s.Name} }

// SlicePort is a port of all endpoints of a slice, named like the Service's port.
type SlicePort struct {
	Name   string
	Number uint16
}

// SliceEndpoint is one endpoint of a slice.
type SliceEndpoint struct {
	Addresses   []string // IPs
	Ready       bool     // nil in the API is true
	Serving     bool     // nil in the API is Ready
	Terminating bool
	Held        bool   // not ready any more, since its API server was silent: see Endpoint.Held
	Pod         string // name of the Pod in targetRef, of the same namespace; "" if it is no Pod
	Node        string
	Zone        string
	Hostname    string
}

// Pod is one Pod that has an IP. Pods of the phases Succeeded and Failed count as gone.
type Pod struct {
	Cluster, Namespace, Name string
	Labels                   map[string]string
	ServiceAccount           string
	Node                     string
	IPs                      []string
	HostNetwork              bool
	Workload                 string // name of the controller that the user wrote (the Deployment, not its ReplicaSet); "" for a bare Pod
	WorkloadKind             string // "Deployment"
	Ports                    []PodPort
	Ready                    bool
}

// Key implements Object.
func (p *Pod) Key() Key { return Key{p.Cluster, KindPod, p.Namespace, p.Name} }

// PodPort is a port that a container of a Pod declares.
type PodPort struct {
	Name      string
	Number    uint16
	Transport string
}

// Node is what the mesh needs of a Node: where it is.
type Node struct {
	Cluster, Name string
	Locality      Locality
	Labels        map[string]string
	Address       string // by which other clusters reach it: its first of type ExternalIP, or else InternalIP
}

// Key implements Object.
func (n *Node) Key() Key { return Key{n.Cluster, KindNode, "", n.Name} }

// Namespace is a Namespace. The label topology.istio.io/network of the system namespace gives its
// cluster's network.
type Namespace struct {
	Cluster, Name string
	Labels        map[string]string
	Distribution  Distribution // of its Services that say nothing
}

// Key implements Object.
func (n *Namespace) Key() Key { return Key{n.Cluster, KindNamespace, "", n.Name} }

func (n *Namespace) distribution() Distribution {
	if n == nil {
		return ""
	}
	return n.Distribution
}

// Meta is what user objects have in common. Only those of the local cluster count.
type Meta struct {
	Cluster, Namespace, Name string
	Labels                   map[string]string
	Created                  time.Time // the older of two that conflict wins
	Generation               int64
	Unread                   []string // fields that could not be read; only of objects that Protects
}

func (m *Meta) key(kind string) Key { return Key{m.Cluster, kind, m.Namespace, m.Name} }

// UserObject is an object that a user wrote, of a kind that has an effect: one of the types below.
type UserObject interface {
	Object
	// Written returns what the user wrote, which must not be changed.
	Written() (*Meta, proto.Message)
}

// NewUserObject returns the object of one of the types below that has a spec of that form, nil if none
// has.
func NewUserObject(m Meta, spec proto.Message) UserObject {
	switch s := spec.(type) {
	case *networking.Gateway:
		return &Gateway{m, s}
	case *networking.VirtualService:
		return &VirtualService{m, s}
	case *networking.DestinationRule:
		return &DestinationRule{m, s}
	case *security.PeerAuthentication:
		return &PeerAuthentication{m, s}
	}
	return nil
}

// Gateway is a networking.istio.io Gateway.
type Gateway struct {
	Meta
	Spec *networking.Gateway
}

// Key implements Object.
func (g *Gateway) Key() Key { return g.key(KindGateway) }

// Written implements UserObject.
func (g *Gateway) Written() (*Meta, proto.Message) { return &g.Meta, g.Spec }

// VirtualService is a networking.istio.io VirtualService.
type VirtualService struct {
	Meta
	Spec *networking.VirtualService
}

// Key implements Object.
func (v *VirtualService) Key() Key { return v.key(KindVirtualService) }

// Written implements UserObject.
func (v *VirtualService) Written() (*Meta, proto.Message) { return &v.Meta, v.Spec }

// DestinationRule is a networking.istio.io DestinationRule.
type DestinationRule struct {
	Meta
	Spec *networking.DestinationRule
}

// Key implements Object.
func (d *DestinationRule) Key() Key { return d.key(KindDestinationRule) }

// Written implements UserObject.
func (d *DestinationRule) Written() (*Meta, proto.Message) { return &d.Meta, d.Spec }

// PeerAuthentication is a security.istio.io PeerAuthentication.
type PeerAuthentication struct {
	Meta
	Spec *security.PeerAuthentication
}

// Key implements Object.
func (p *PeerAuthentication) Key() Key { return p.key(KindPeerAuthentication) }

// Written implements UserObject.
func (p *PeerAuthentication) Written() (*Meta, proto.Message) { return &p.Meta, p.Spec }

// MeshConfig is ConfigMap istio of a cluster's system namespace. Only the local cluster's counts.
// Spec is never nil and holds what the user wrote; defaults are filled in by Snapshot.Config.
type MeshConfig struct {
	Cluster  string
	Spec     *meshconfig.MeshConfig
	Networks *meshconfig.MeshNetworks // may be nil

	Namespace, Name string   // of the ConfigMap, for findings; may be empty
	Unread          []string // paths of fields that could not be read, and are not in Spec: "outboundTrafficPolicy.mode"; "" for all
	KeepNetworks    bool     // Networks could not be read: the last ones stay
	// Addresses are where host names among the addresses of gateways in Networks lead to.
	Addresses map[string][]string
}

// Key implements Object.
func (m *MeshConfig) Key() Key { return Key{m.Cluster, KindMeshConfig, "", ""} }

// Credential is a Secret of TLS material that a Gateway names by credentialName. It is never logged
// or dumped.
type Credential struct {
	Cluster, Namespace, Name string
	Cert, PrivateKey, CA     []byte // PEM; CA only where client certificates are asked for
	CRL                      []byte // PEM, of the CA's; nil for none
}

// Key implements Object.
func (c *Credential) Key() Key { return Key{c.Cluster, KindCredential, c.Namespace, c.Name} }

// Locality is where something runs: labels topology.kubernetes.io/region, topology.kubernetes.io/zone
// and topology.istio.io/subzone of its Node.
type Locality struct{ Region, Zone, Subzone string }

// String returns region/zone/subzone, without what is empty at the end.
func (l Locality) String() string {
	s := l.Region
	if l.Zone != "" || l.Subzone != "" {
		s += "/" + l.Zone
	}
	if l.Subzone != "" {
		s += "/" + l.Subzone
	}
	return s
}

// LocalityOf reads a Node's labels, also those of Kubernetes before 1.17.
func LocalityOf(labels map[string]string) Locality {
	first := func(keys ...string) string {
		for _, k := range keys {
			if v := labels[k]; v != "" {
				return v
			}
		}
		return ""
	}
	return Locality{
		Region:  first("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"),
		Zone:    first("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"),
		Subzone: first("topology.istio.io/subzone"),
	}
}

// Finding is something wrong with a user's object, or with how objects fit together: what it is
// about, and the way out. It never stops the rest of the mesh.
type Finding struct {
	Object  Key
	Field   string // "spec.servers[0].port.number"; "" if it is about the whole
	Message string // one sentence, without the object's name
	Fix     string // what to do, one sentence; "" if that is plain from Message
	Code    string // of Istio's messages, such as IST0101; "" where those have none
	Level   string // Error, Warning or Info; "" where whoever found it leaves that to whoever tells it
	Reason  string // of the condition on the object: NotImplemented; "" for Invalid
}

// String returns one line.
func (f Finding) String() string { return f.Object.String() + ": " + f.Text() }

// Text is String without the object.
func (f Finding) Text() (s string) {
	if f.Field != "" {
		s += f.Field + ": "
	}
	s += f.Message
	if f.Fix != "" {
		s += " (" + f.Fix + ")"
	}
	return s
}

// GatewayHealth says whether the gateway of another network answers, as a prober found. A gateway
// that nothing was said about counts as up.
type GatewayHealth struct {
	Address string // IP
	Port    uint16
	Down    bool
}

// Key implements Object.
func (g *GatewayHealth) Key() Key {
	return Key{"", KindGatewayHealth, "", net.JoinHostPort(g.Address, strconv.Itoa(int(g.Port)))}
}
