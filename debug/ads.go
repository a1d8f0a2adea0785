package debug

import (
	"context"
	"net/http"
	"strings"

	"github.com/carrick-mesh/carrick/xds"
	"google.golang.org/protobuf/types/known/anypb"
)

// TypePrefix begins the types under which istioctl asks for debug pages over ADS.
const TypePrefix = "istio.io/debug"

// Answer serves debug pages over ADS, as istioctl asks for them: syncz and config_dump in messages
// of Envoy's, any other as the bytes of the page. Only authenticated clients of the control plane's
// own namespace get answers.
func (p *Pages) Answer(_ context.Context, client *xds.Client, typeURL string, names []string) ([]*anypb.Any, bool) {
	name, ok := strings.CutPrefix(typeURL, TypePrefix)
	if !ok || name != "" && name[0] != '/' {
		return nil, false
	}
	if peer := p.view.Peer(client); !peer.Authenticated || peer.Namespace != p.view.Snapshot().Settings().SystemNamespace {
		return nil, true
	}
	if name = strings.TrimPrefix(name, "/"); name == "" && len(names) == 1 { // the page's name is the resource's
		return p.page(typeURL, names[0]), true
	}
	switch name, query, _ := strings.Cut(name, "?"); name {
	case "syncz":
		return p.clientConfigs(), true
	case "config_dump":
		id := strings.TrimPrefix(query, "proxyID=")
		if len(names) == 1 {
			id = names[0]
		}
		dump, err := p.dump(id)
		if err != nil {
			return nil, true
		}
		return dump.Configs, true
	}
	return p.page(typeURL, name), true
}

// page returns a debug page, with its query, as one resource.
func (p *Pages) page(typeURL, path string) []*anypb.Any {
	r, err := http.NewRequest(http.MethodGet, "/debug/"+path, nil)
	if err != nil {
		return nil
	}
	for _, page := range p.pages() {
		if r.URL.Path == "/debug/"+page.name && !strings.HasPrefix(page.name, "pprof") {
			w := &capture{header: http.Header{}}
			page.serve(w, r)
			return []*anypb.Any{{TypeUrl: typeURL, Value: w.body}}
		}
	}
	return nil
}

// capture is a ResponseWriter that keeps what is written.
type capture struct {
	header http.Header
	body   []byte
}

func (c *capture) Header() http.Header         { return c.header }
func (c *capture) WriteHeader(int)             {}
func (c *capture) Write(b []byte) (int, error) { c.body = append(c.body, b...); return len(b), nil }
