package kube

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/carrick-mesh/carrick/mesh"
)

// resolvePeriod is how often the host names of gateways are looked up. Answers are kept until a
// lookup gives others.
const resolvePeriod = 15 * time.Second

// resolver looks up the host names of gateways between networks.
type resolver struct {
	lookup func(ctx context.Context, host string) ([]string, error)
	poke   chan struct{}

	mu      sync.Mutex
	answers map[string][]string
	objects map[named]waiting
}

type named struct {
	feed *feed
	key  mesh.Key
}

type waiting struct {
	object mesh.Object // without the resolved addresses
	names  []string
}

func newResolver() *resolver {
	return &resolver{
		lookup: func(ctx context.Context, host string) ([]string, error) {
			return net.DefaultResolver.LookupHost(ctx, host)
		},
		poke:    make(chan struct{}, 1),
		answers: map[string][]string{}, objects: map[named]waiting{},
	}
}

// remember notes the names of a feed's Service or MeshConfig, none if names is empty.
func (r *resolver) remember(f *feed, o mesh.Object, names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(names) == 0 {
		delete(r.objects, named{f, o.Key()})
		return
	}
	r.objects[named{f, o.Key()}] = waiting{o, names}
	for _, n := range names {
		if r.answers[n] == nil {
			select {
			case r.poke <- struct{}{}:
			default:
			}
		}
	}
}

// addressed returns o with the addresses that its names have. The feed calls it at the moment at which it
// tells of o, so that an old answer never follows a new one.
func (r *resolver) addressed(f *feed, o mesh.Object) mesh.Object {
	switch o.(type) {
	case *mesh.Service, *mesh.MeshConfig:
	default:
		return o
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	w, ok := r.objects[named{f, o.Key()}]
	if !ok {
		return o
	}
	switch o := w.object.(type) {
	case *mesh.Service:
		c := *o
		c.Addresses = slices.Clone(c.Addresses)
		for _, n := range w.names {
			c.Addresses = append(c.Addresses, r.answers[n]...)
		}
		return &c
	case *mesh.MeshConfig:
		c := *o
		c.Addresses = map[string][]string{}
		for _, n := range w.names {
			if len(r.answers[n]) > 0 {
				c.Addresses[n] = r.answers[n]
			}
		}
		return &c
	}
	return o
}

func (r *resolver) forget(f *feed, k mesh.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.objects, named{f, k})
}

// forgetAll drops the objects of a feed that is over.
func (r *resolver) forgetAll(f *feed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range r.objects {
		if k.feed == f {
			delete(r.objects, k)
		}
	}
}

// run looks names up until ctx ends.
func (r *resolver) run(ctx context.Context) {
	tick := time.NewTicker(resolvePeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-r.poke:
		}
		r.refresh(ctx)
	}
}

func (r *resolver) refresh(ctx context.Context) {
	r.mu.Lock()
	names := map[string]bool{}
	for _, w := range r.objects {
		for _, n := range w.names {
			names[n] = true
		}
	}
	for n := range r.answers {
		if !names[n] {
			delete(r.answers, n)
		}
	}
	r.mu.Unlock()

	changed := map[string]bool{}
	for n := range names {
		one, cancel := context.WithTimeout(ctx, callTimeout)
		ips, err := r.lookup(one, n)
		cancel()
		if err != nil || len(ips) == 0 {
			continue // the last answer stays
		}
		slices.Sort(ips)
		r.mu.Lock()
		if !slices.Equal(r.answers[n], ips) {
			r.answers[n], changed[n] = ips, true
		}
		r.mu.Unlock()
	}
	if len(changed) == 0 {
		return
	}
	var updates []named
	r.mu.Lock()
	for k, w := range r.objects {
		if slices.ContainsFunc(w.names, func(n string) bool { return changed[n] }) {
			updates = append(updates, k)
		}
	}
	r.mu.Unlock()
	for _, u := range updates {
		u.feed.again(u.key)
	}
}
