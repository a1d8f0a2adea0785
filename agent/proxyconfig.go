package agent

import (
	"encoding/json"
	"fmt"
	"time"
)

// ProxyConfig is what the agent uses of istio.mesh.v1alpha1.ProxyConfig, in its JSON form. The
// whole JSON goes to the control plane in the node's metadata.
type ProxyConfig struct {
	DiscoveryAddress         string            `json:"discoveryAddress"`         // default istiod.istio-system.svc:15012
	ConfigPath               string            `json:"configPath"`               // default ./etc/istio/proxy
	BinaryPath               string            `json:"binaryPath"`               // of Envoy; default /usr/local/bin/envoy
	ServiceCluster           string            `json:"serviceCluster"`           // default APP.NAMESPACE
	DrainDuration            duration          `json:"drainDuration"`            // default 45 s
	TerminationDrainDuration duration          `json:"terminationDrainDuration"` // default 5 s
	StatusPort               int               `json:"statusPort"`               // default 15020
	AdminPort                int               `json:"proxyAdminPort"`           // default 15000
	Concurrency              *int              `json:"concurrency"`              // worker threads; default 2, 0 for one per CPU
	ControlPlaneAuthPolicy   string            `json:"controlPlaneAuthPolicy"`   // NONE: plaintext
	ProxyMetadata            map[string]string `json:"proxyMetadata"`            // environment of the proxy; ISTIO_META_* adds metadata
	StatsMatcher             statsMatcher      `json:"proxyStatsMatcher"`
	ExtraStatTags            []string          `json:"extraStatTags"`
	Tracing                  struct {
		Zipkin struct {
			Address string `json:"address"` // HOST:PORT
		} `json:"zipkin"`
	} `json:"tracing"`

	raw json.RawMessage
}

// statsMatcher names further statistics that Envoy keeps.
type statsMatcher struct {
	InclusionPrefixes []string `json:"inclusionPrefixes"`
	InclusionSuffixes []string `json:"inclusionSuffixes"`
	InclusionRegexps  []string `json:"inclusionRegexps"`
}

// duration is a google.protobuf.Duration in JSON: "5s".
type duration time.Duration

func (d *duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("duration %s: write it as a string such as \"5s\"", b)
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return fmt.Errorf("duration %q: write it as a number of seconds such as \"5s\"", s)
	}
	*d = duration(v)
	return nil
}

// ParseProxyConfig reads the JSON of a ProxyConfig, as in the environment variable PROXY_CONFIG,
// and fills in the defaults. Empty is all defaults.
func ParseProxyConfig(s string) (*ProxyConfig, error) {
	c := &ProxyConfig{
		DiscoveryAddress:         "istiod.istio-system.svc:15012",
		ConfigPath:               "./etc/istio/proxy",
		BinaryPath:               "/usr/local/bin/envoy",
		DrainDuration:            duration(45 * time.Second),
		TerminationDrainDuration: duration(5 * time.Second),
		StatusPort:               15020,
		AdminPort:                15000,
	}
	c.raw = json.RawMessage("{}")
	if s == "" {
		return c, nil
	}
	if err := json.Unmarshal([]byte(s), c); err != nil {
		return nil, fmt.Errorf("PROXY_CONFIG: %w", err)
	}
	c.raw = json.RawMessage(s)
	for _, p := range []struct {
		field string
		port  int
	}{{"statusPort", c.StatusPort}, {"proxyAdminPort", c.AdminPort}} {
		if p.port < 1 || p.port > 65535 {
			return nil, fmt.Errorf("PROXY_CONFIG: %s: %d is not a port (1-65535)", p.field, p.port)
		}
	}
	if c.Concurrency != nil && *c.Concurrency < 0 {
		return nil, fmt.Errorf("PROXY_CONFIG: concurrency: %d is less than 0", *c.Concurrency)
	}
	return c, nil
}
