package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"sync"

	"github.com/carrick-mesh/carrick/resource"
)

// view is a published list, with what is worked out from it once for all clients that have it.
type view struct {
	list *resource.List

	mu      sync.Mutex
	names   map[string]*resource.Resource
	hash    string
	deltas  map[*view]resource.Delta // from older views
	retired bool                     // no client is to get it any more
}

// nothing is the view of an empty list.
var nothing = newView(nil)

func newView(l *resource.List) *view { return &view{list: l} }

// get returns the resource of that name, nil if there is none.
func (v *view) get(name string) *resource.Resource {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.names == nil {
		v.names = map[string]*resource.Resource{}
		for r := range v.list.All() {
			v.names[r.Name] = r
		}
	}
	return v.names[name]
}

// version returns a hash of all that the list holds.
func (v *view) version() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.hash == "" {
		h := sha256.New()
		for r := range v.list.All() {
			h.Write([]byte(r.Name))
			h.Write([]byte{0})
			h.Write([]byte(r.Version))
			h.Write([]byte{0})
		}
		v.hash = hex.EncodeToString(h.Sum(nil)[:8])
	}
	return v.hash
}

// since returns what to tell a client that holds all of old.
func (v *view) since(old *view) resource.Delta {
	if v == old {
		return resource.Delta{}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	d, ok := v.deltas[old]
	if !ok {
		d = v.list.Since(old.list)
		if !v.retired && v != nothing {
			if v.deltas == nil {
				v.deltas = map[*view]resource.Delta{}
			}
			v.deltas[old] = d
		}
	}
	return d
}

// retire forgets the deltas, which hold on to older views, as those did to theirs.
func (v *view) retire() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.deltas, v.retired = nil, true
}
