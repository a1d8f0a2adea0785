package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	"github.com/carrick-mesh/carrick/resource"
)

// Bootstrap is what a proxy starts with.
type Bootstrap struct {
	Node   *core.Node
	Admin  netip.AddrPort // not valid: no admin port
	Static []Source       // listeners, clusters, secrets
	// ADS names the static cluster of the ADS server; empty: there is none.
	ADS      string
	Overload Overload
	// Proto is the bootstrap itself, for dumps.
	Proto *bootstrap.Bootstrap
}

// ParseBootstrap reads an Envoy v3 bootstrap in JSON or YAML.
func ParseBootstrap(data []byte) (*Bootstrap, error) {
	if !json.Valid(data) {
		var v any
		if err := yaml.Unmarshal(data, &v); err != nil {
			return nil, fmt.Errorf("bootstrap: decoding: %w", err)
		}
		j, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("bootstrap: decoding: %w", err)
		}
		data = j
	}
	m := &bootstrap.Bootstrap{}
	if err := decodeBootstrap(data, m); err != nil {
		return nil, err
	}
	return NewBootstrap(m)
}

// NewBootstrap takes a bootstrap that is decoded already.
func NewBootstrap(m *bootstrap.Bootstrap) (*Bootstrap, error) {
	b := &Bootstrap{Node: m.Node, Proto: m}
	err := b.compile(m)
	var fe *fieldError
	if errors.As(err, &fe) {
		return nil, &Error{Kind: "bootstrap", Path: fe.path, Err: fe.err}
	}
	if err != nil {
		return nil, &Error{Kind: "bootstrap", Err: err}
	}
	return b, nil
}

func (b *Bootstrap) compile(m *bootstrap.Bootstrap) error {
	// The static resources are checked when they are compiled, under their own names.
	shell := proto.Clone(m).(*bootstrap.Bootstrap)
	shell.StaticResources = nil
	if d := shell.DynamicResources; d != nil && d.AdsConfig != nil {
		shell.DynamicResources.AdsConfig = nil
	}
	if err := check(shell); err != nil {
		return err
	}
	if a := m.GetAdmin().GetAddress().GetSocketAddress(); a != nil {
		ap, err := ipPort(a)
		if err != nil {
			return in("admin.address.socket_address", err)
		}
		b.Admin = ap
	}
	var err error
	if b.Overload, err = compileOverload(m.OverloadManager); err != nil {
		return in("overload_manager", err)
	}
	if err := b.compileDynamic(m.DynamicResources); err != nil {
		return in("dynamic_resources", err)
	}
	add := func(typeURL, name string, m proto.Message) error {
		body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			return fmt.Errorf("encoding %s: %w", name, err)
		}
		b.Static = append(b.Static, Source{Type: typeURL, Resource: resource.New(name, body), Static: true})
		return nil
	}
	for _, s := range m.GetStaticResources().GetSecrets() {
		if err := add(resource.SecretType, s.Name, s); err != nil {
			return err
		}
	}
	for _, c := range m.GetStaticResources().GetClusters() {
		if err := add(resource.ClusterType, c.Name, c); err != nil {
			return err
		}
	}
	for i, l := range m.GetStaticResources().GetListeners() {
		if l.Name == "" {
			l = proto.Clone(l).(*listener.Listener)
			l.Name = fmt.Sprintf("static-%d", i)
		}
		if err := add(resource.ListenerType, l.Name, l); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bootstrap) compileDynamic(d *bootstrap.Bootstrap_DynamicResources) error {
	if d.GetLdsConfig() != nil {
		if err := viaADS(d.LdsConfig); err != nil {
			return in("lds_config", err)
		}
	}
	if d.GetCdsConfig() != nil {
		if err := viaADS(d.CdsConfig); err != nil {
			return in("cds_config", err)
		}
	}
	a := d.GetAdsConfig()
	if a == nil {
		if d.GetLdsConfig() != nil || d.GetCdsConfig() != nil {
			return in("ads_config", errors.New("is missing"))
		}
		return nil
	}
	if t := a.ApiType; t != core.ApiConfigSource_GRPC && t != core.ApiConfigSource_DELTA_GRPC {
		return in("ads_config.api_type", notSupported(t.String()))
	}
	if len(a.GrpcServices) != 1 || a.GrpcServices[0].GetEnvoyGrpc() == nil {
		return in("ads_config.grpc_services", errors.New("must be one envoy_grpc service"))
	}
	b.ADS = a.GrpcServices[0].GetEnvoyGrpc().GetClusterName()
	return nil
}
