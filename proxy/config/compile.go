package config

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sort"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/carrick-mesh/carrick/resource"
)

// Name is a resource by type URL and name.
type Name = struct{ Type, Name string }

// Compiler compiles resources and remembers the result as long as it is used, so that a resource with
// the same content keeps its object. The zero value is ready. Not for concurrent use.
type Compiler struct {
	last map[Name]compiled
}

type compiled struct {
	version string
	object  any // *Listener, *Cluster, *Assignment, *RouteTable or *Secret
	needs   []Name
	used    bool // since the last Compile
}

// Decode compiles one resource and returns the resources that it cannot be used without: a cluster's
// endpoints, a listener's route tables, secrets over ADS. An error is an *Error.
func (c *Compiler) Decode(typeURL string, r *resource.Resource) (needs []Name, err error) {
	x, err := c.decode(typeURL, r)
	return x.needs, err
}

func (c *Compiler) decode(typeURL string, r *resource.Resource) (compiled, error) {
	n := Name{typeURL, r.Name}
	if x, ok := c.last[n]; ok && x.version == r.Version {
		x.used = true
		c.last[n] = x
		return x, nil
	}
	x := compiled{version: r.Version, used: true}
	var err error
	x.object, x.needs, err = compileResource(typeURL, r.Name, r.Bytes())
	if err != nil {
		return compiled{}, err
	}
	if c.last == nil {
		c.last = map[Name]compiled{}
	}
	c.last[n] = x
	return x, nil
}

// Compile returns the configuration made of sources, which should be all that there is: static
// resources first; a later source replaces an earlier one of the same name, except that dynamic
// resources do not replace static ones. On error (of any of them, joined) there is no Config.
func (c *Compiler) Compile(sources []Source) (*Config, error) {
	cfg := &Config{
		Clusters:  map[string]*Cluster{},
		Endpoints: map[string]*Assignment{},
		Routes:    map[string]*RouteTable{},
		Secrets:   map[string]*Secret{},
	}
	for n, x := range c.last {
		x.used = false
		c.last[n] = x
	}
	static := map[Name]bool{}
	listeners := map[string]*Listener{}
	var errs []error
	for _, s := range sources {
		n := Name{s.Type, s.Resource.Name}
		if static[n] && !s.Static {
			continue
		}
		x, err := c.decode(s.Type, s.Resource)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if s.Static && static[n] {
			errs = append(errs, &Error{Kind: kinds[n.Type], Name: n.Name, Err: errors.New("is there twice; give each its own name")})
			continue
		}
		static[n] = s.Static
		cfg.Sources = append(cfg.Sources, s)
		switch o := x.object.(type) {
		case *Listener:
			listeners[n.Name] = o
		case *Cluster:
			cfg.Clusters[n.Name] = o
		case *Assignment:
			cfg.Endpoints[n.Name] = o
		case *RouteTable:
			cfg.Routes[n.Name] = o
		case *Secret:
			cfg.Secrets[n.Name] = o
		}
	}
	for n, x := range c.last {
		if !x.used {
			delete(c.last, n)
		}
	}
	errs = append(errs, clashes(listeners, static)...)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for _, l := range listeners {
		cfg.Listeners = append(cfg.Listeners, l)
	}
	sort.Slice(cfg.Listeners, func(i, j int) bool { return cfg.Listeners[i].Name < cfg.Listeners[j].Name })
	return cfg, nil
}

// clashes finds static listeners that would bind the same address.
func clashes(listeners map[string]*Listener, static map[Name]bool) (errs []error) {
	at := map[netip.AddrPort]string{}
	for _, name := range slices.Sorted(maps.Keys(listeners)) {
		l := listeners[name]
		if !l.Bind || l.API != nil || !static[Name{resource.ListenerType, name}] {
			continue
		}
		for _, a := range l.Addresses {
			if o, ok := at[a]; ok && a.Port() != 0 {
				errs = append(errs, &Error{Kind: "listener", Name: name, Path: "address", Err: fmt.Errorf("%s is already the address of listener %q", a, o)})
			}
			at[a] = name
		}
	}
	return errs
}

var kinds = map[string]string{
	resource.ListenerType: "listener",
	resource.ClusterType:  "cluster",
	resource.EndpointType: "endpoints",
	resource.RouteType:    "route configuration",
	resource.SecretType:   "secret",
}

// needs collects the resources that a resource cannot be used without.
type needs []Name

func (n *needs) add(typeURL, name string) {
	for _, x := range *n {
		if x == (Name{typeURL, name}) {
			return
		}
	}
	*n = append(*n, Name{typeURL, name})
}

func compileResource(typeURL, name string, b []byte) (object any, ns needs, err error) {
	switch typeURL {
	case resource.ListenerType:
		object, err = compileAs(b, &listener.Listener{}, func(m *listener.Listener) (any, error) { return compileListener(m, &ns) })
	case resource.ClusterType:
		object, err = compileAs(b, &cluster.Cluster{}, func(m *cluster.Cluster) (any, error) { return compileCluster(m, &ns) })
	case resource.EndpointType:
		object, err = compileAs(b, &endpoint.ClusterLoadAssignment{}, func(m *endpoint.ClusterLoadAssignment) (any, error) { return compileAssignment(m) })
	case resource.RouteType:
		object, err = compileAs(b, &route.RouteConfiguration{}, func(m *route.RouteConfiguration) (any, error) { return compileRoutes(m) })
	case resource.SecretType:
		object, err = compileAs(b, &tls.Secret{}, func(m *tls.Secret) (any, error) { return compileSecret(m) })
	default:
		return nil, nil, &Error{Kind: "resource", Name: name, Err: fmt.Errorf("type %s is %w", typeURL, errNotSupported)}
	}
	if err != nil {
		e := &Error{Kind: kinds[typeURL], Name: name, Err: err}
		var fe *fieldError
		if errors.As(err, &fe) {
			e.Path, e.Err = fe.path, fe.err
		}
		return nil, nil, e
	}
	return object, ns, nil
}

func compileAs[M proto.Message](b []byte, m M, f func(M) (any, error)) (any, error) {
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("decoding: %w", err)
	}
	if err := check(m); err != nil {
		return nil, err
	}
	return f(m)
}

// unpack decodes an Any into the Go type of its URL and checks its fields.
func unpack(a *anypb.Any) (proto.Message, error) {
	if a == nil {
		return nil, errors.New("is missing")
	}
	m, err := a.UnmarshalNew()
	if err != nil {
		return nil, notSupported(a.GetTypeUrl())
	}
	if _, ok := fields()[m.ProtoReflect().Descriptor().FullName()]; !ok {
		return nil, notSupported(a.GetTypeUrl())
	}
	return m, check(m)
}

// unpackAs is unpack where only one type is possible.
func unpackAs[M proto.Message](a *anypb.Any) (M, error) {
	var zero M
	x, err := unpack(a)
	if err != nil {
		return zero, err
	}
	m, ok := x.(M)
	if !ok {
		return zero, notSupported(a.GetTypeUrl())
	}
	return m, nil
}
