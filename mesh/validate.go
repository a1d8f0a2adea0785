package mesh

import (
	"fmt"
	"math"
	"regexp"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
)

// refusal is an object that is not in the mesh, and why.
type refusal struct {
	object Key
	found  []Finding
}

// validate returns what makes an object meaningless by itself, whatever else the mesh holds: all that a
// proxy would refuse a whole listener or route table for.
func validate(o Object) []Finding {
	v := &validator{object: o.Key()}
	switch o := o.(type) {
	case *Gateway:
		v.gateway(o.Spec)
	case *VirtualService:
		v.virtualService(o.Spec)
	case *DestinationRule:
		v.destinationRule(o.Spec)
	case *PeerAuthentication:
		v.peerAuthentication(o.Spec)
	case *MeshConfig:
		v.object = configMap(o)
		v.meshConfig(o.Spec)
	}
	return v.found
}

// validator collects findings about one object.
type validator struct {
	object Key
	found  []Finding
}

func (v *validator) add(field, fix, format string, args ...any) {
	v.found = append(v.found, Finding{Object: v.object, Field: field, Message: fmt.Sprintf(format, args...), Fix: fix})
}

func (v *validator) port(field string, n uint32) {
	if n < 1 || n > 65535 {
		v.add(field, "name a port from 1 to 65535", "port %d does not exist", n)
	}
}

func (v *validator) percentage(field string, p float64) {
	if p < 0 || p > 100 || p != p {
		v.add(field, "name a percentage from 0 to 100", "%v is no percentage", p)
	}
}

func (v *validator) regex(field, expression string) {
	if _, err := regexp.Compile(expression); err != nil {
		v.add(field, "write it in RE2 syntax", "%q is no regular expression: %v", expression, err)
	}
}

// maxSeconds is the longest duration that Envoy can count in nanoseconds.
const maxSeconds = math.MaxInt64/1_000_000_000 - 1

// duration checks one that must be at least min if it is given.
func (v *validator) duration(field string, d *durationpb.Duration, atLeast time.Duration) {
	switch {
	case d == nil:
	case d.CheckValid() != nil:
		v.add(field, "write it as 1.5s", "the duration is out of range")
	case d.GetSeconds() > maxSeconds:
		v.add(field, fmt.Sprintf("name at most %d s", int64(maxSeconds)), "%d s is too long", d.GetSeconds())
	case d.AsDuration() < atLeast:
		v.add(field, fmt.Sprintf("name at least %v", atLeast), "%v is too short", d.AsDuration())
	}
}

var token = regexp.MustCompile("^:?[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

func (v *validator) headerName(field, name string) {
	if !token.MatchString(name) {
		v.add(field, "name a header", "%q is no header name", name)
	}
}

func (v *validator) headerValue(field, value string) {
	if strings.ContainsAny(value, "\r\n\x00") {
		v.add(field, "write it on one line", "the value has a line break in it")
	}
	v.format(field, value)
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9_]([-a-z0-9_]*[a-z0-9_])?$`)

// host checks a host name, which may be "*" or begin with "*.".
func (v *validator) host(field, host string) {
	rest := strings.ToLower(host)
	if rest == "*" {
		return
	}
	rest = strings.TrimPrefix(rest, "*.")
	if rest == "" || len(rest) > 253 {
		v.add(field, "name a host, such as reviews or *.example.com", "%q is no host name", host)
		return
	}
	if strings.Contains(rest, ":") { // an IPv6 address
		return
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(rest, "."), ".") {
		if len(label) > 63 || !dnsLabel.MatchString(label) {
			v.add(field, "name a host, such as reviews or *.example.com", "%q is no host name", host)
			return
		}
	}
}

// pattern checks a host name as requests have it in Host: "*" may also stand for the beginning of its first
// label, which no server name of TLS can say.
func (v *validator) pattern(field, host string) {
	if rest, ok := strings.CutPrefix(host, "*"); ok && rest != "" && rest[0] != '.' {
		host = "x" + rest
	}
	v.host(field, host)
}

// exportTo checks the namespaces that an object is visible in.
func (v *validator) exportTo(namespaces []string) {
	for i, ns := range namespaces {
		if ns != "*" && ns != "." && ns != "~" && (len(ns) > 63 || !dnsLabel.MatchString(ns)) {
			v.add(fmt.Sprintf("spec.exportTo[%d]", i), `name a namespace, "." for its own, "*" for all`, "%q is no namespace", ns)
		}
	}
}
