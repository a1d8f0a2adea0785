package compile

import (
	"regexp"
	"slices"
	"strconv"

	"github.com/carrick-mesh/carrick/mesh"
)

// origin is how resources say in their metadata which object they were made of. A string on the wire may be followed
// by a byte that looks like more of the name.
var origin = regexp.MustCompile(`/apis/networking\.istio\.io/v1alpha3/namespaces/([a-z0-9-]+)/(virtual-service|destination-rule)/([a-z0-9][a-z0-9.-]*)`)

// Origins returns the users' objects of the local cluster that an encoded resource of a proxy was made of, as far as
// it says so, each once.
func Origins(s *mesh.Snapshot, body []byte) (keys []mesh.Key) {
	for _, m := range origin.FindAllSubmatch(body, -1) {
		kind := mesh.KindVirtualService
		there := func(name string) bool { return s.VirtualServices().Get(string(m[1])+"/"+name) != nil }
		if string(m[2]) == "destination-rule" {
			kind = mesh.KindDestinationRule
			there = func(name string) bool { return s.DestinationRules().Get(string(m[1])+"/"+name) != nil }
		}
		for name := string(m[3]); name != ""; name = name[:len(name)-1] {
			if !there(name) {
				continue
			}
			if k := (mesh.Key{Cluster: s.Local(), Kind: kind, Namespace: string(m[1]), Name: name}); !slices.Contains(keys, k) {
				keys = append(keys, k)
			}
			break
		}
	}
	return keys
}

// GatewaysOn returns the Gateways that a listener of a proxy was made of.
func GatewaysOn(s *mesh.Snapshot, p Proxy, listener string) (keys []mesh.Key) {
	if !p.Router {
		return nil
	}
	for _, srv := range gatewayOf(s, p).servers {
		name, _, _ := listenOn(p.Families, srv.bind)
		if name != listener && "0.0.0.0_"+strconv.Itoa(int(srv.bind)) != listener {
			continue
		}
		if k := srv.gateway.Key(); !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	return keys
}
