package control

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/carrick-mesh/carrick/compile"
	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
)

// refusals says of users' objects that proxies refuse what comes of them. What leads to no object is said of the
// proxy's Pod. Only what proxies say whose tokens were reviewed counts.
func (l *loop) refusals() []mesh.Finding {
	found := map[mesh.Key]mesh.Finding{}
	for client, seen := range l.seen {
		if seen.pod == nil || !client.Identity.(*Peer).Authenticated {
			continue
		}
		bundle := client.Bundle()
		for typeURL, status := range client.Status() {
			for _, name := range slices.Sorted(maps.Keys(status.Refused)) {
				var r *resource.Resource
				if bundle != nil {
					r = named(bundle.Lists[typeURL], name)
				}
				if r == nil {
					continue // it is gone, and so is the refusal
				}
				said := plainText(status.Refused[name])
				for _, k := range l.blamed(seen, typeURL, r, said) {
					if _, told := found[k]; !told {
						found[k] = mesh.Finding{Object: k, Level: "Error", Fix: "correct that; the proxy keeps what it had, and a new one is not ready",
							Message: fmt.Sprintf("proxy %s/%s refuses its %s %q: %s", seen.pod.Namespace, seen.pod.Name, kindOfType(typeURL), name, said)}
					}
				}
			}
		}
	}
	all := slices.Collect(maps.Values(found))
	slices.SortFunc(all, func(a, b mesh.Finding) int { return strings.Compare(a.Object.String(), b.Object.String()) })
	return all
}

func named(l *resource.List, name string) (found *resource.Resource) {
	for r := range l.All() {
		if r.Name == name {
			return r
		}
	}
	return nil
}

// maxBlamed is how many objects a refusal that names none of them may be said of.
const maxBlamed = 3

// blamed returns the objects that a refused resource was made of: those that have in them what the refusal quotes,
// all if they are few, and else the proxy's Pod.
func (l *loop) blamed(s *seen, typeURL string, r *resource.Resource, said string) []mesh.Key {
	keys := compile.Origins(l.snap, r.Bytes())
	if typeURL == resource.ListenerType {
		keys = append(keys, compile.GatewaysOn(l.snap, s.proxy, r.Name)...)
	}
	quotes := quoted(said)
	meant := slices.DeleteFunc(slices.Clone(keys), func(k mesh.Key) bool { return !l.holds(k, quotes) })
	switch {
	case len(meant) > 0:
		return meant
	case len(keys) > 0 && len(keys) <= maxBlamed:
		return keys
	}
	return []mesh.Key{s.pod.Key()}
}

var quotation = regexp.MustCompile(`'([^']+)'|"([^"]+)"`)

// quoted returns what a refusal quotes, as JSON has it.
func quoted(said string) (words []string) {
	for _, m := range quotation.FindAllStringSubmatch(said, -1) {
		if b, err := json.Marshal(m[1] + m[2]); err == nil {
			words = append(words, string(b[1:len(b)-1]))
		}
	}
	return words
}

// holds reports whether an object has one of the words in it.
func (l *loop) holds(k mesh.Key, words []string) bool {
	var o mesh.UserObject
	switch name := k.Namespace + "/" + k.Name; k.Kind {
	case mesh.KindVirtualService:
		o = l.snap.VirtualServices().Get(name)
	case mesh.KindDestinationRule:
		o = l.snap.DestinationRules().Get(name)
	case mesh.KindGateway:
		o = l.snap.Gateways().Get(name)
	}
	if o == nil || len(words) == 0 {
		return false
	}
	_, spec := o.Written()
	b, err := protojson.Marshal(spec)
	return err == nil && slices.ContainsFunc(words, func(w string) bool { return strings.Contains(string(b), w) })
}

// plainText bounds and cleans what a proxy says, which goes into conditions and logs.
func plainText(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

func kindOfType(typeURL string) string {
	switch typeURL {
	case resource.ClusterType:
		return "cluster"
	case resource.ListenerType:
		return "listener"
	case resource.RouteType:
		return "route table"
	case resource.EndpointType:
		return "endpoints"
	}
	return "resource"
}
