package kube

import (
	"slices"
	"time"

	"github.com/carrick-mesh/carrick/mesh"
)

// graceTime is how long endpoints stay that an API server calls unready right after it was silent: in
// that time its nodes could not tell it that they live, so it takes them all for dead at one stroke.
const graceTime = 30 * time.Second

// grace is whether such endpoints stay now.
type grace struct {
	silent bool
	until  time.Time // after the silence
}

func (g grace) holds(now time.Time) bool { return g.silent || now.Before(g.until) }

// hold returns the slice with those endpoints marked that were ready before and are not any more, though
// they are still there. Whether they are of use is for the mesh to say, which sees the whole Service.
func hold(before mesh.Object, now *mesh.EndpointSlice) *mesh.EndpointSlice {
	was, ok := before.(*mesh.EndpointSlice)
	if !ok {
		return now
	}
	var out *mesh.EndpointSlice
	for i, e := range now.Endpoints {
		if e.Ready || e.Terminating || !slices.ContainsFunc(was.Endpoints, func(x mesh.SliceEndpoint) bool {
			return (x.Ready || x.Held) && !x.Terminating && x.Pod == e.Pod && slices.Equal(x.Addresses, e.Addresses)
		}) {
			continue
		}
		if out == nil {
			c := *now
			c.Endpoints = slices.Clone(now.Endpoints)
			out = &c
		}
		out.Endpoints[i].Held = true
	}
	if out == nil {
		return now
	}
	return out
}

// hush notes that the API server is silent, or that it has answered again.
func (f *feed) hush(silent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.grace = grace{silent: silent}
	if !silent {
		f.grace.until = time.Now().Add(graceTime)
	}
}

// inherit goes on with what another feed holds. Both are locked.
func (f *feed) inherit(old *feed) {
	if !old.grace.holds(time.Now()) {
		return
	}
	f.grace = grace{until: time.Now().Add(graceTime)}
	for k, o := range f.objects {
		if s, ok := o.(*mesh.EndpointSlice); ok {
			f.objects[k] = hold(old.objects[k], s)
		}
	}
}

// release tells the truth of the endpoints that were held.
func (f *feed) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.grace.holds(time.Now()) {
		return
	}
	var events []mesh.Event
	for _, o := range f.objects {
		s, ok := o.(*mesh.EndpointSlice)
		if !ok || !slices.ContainsFunc(s.Endpoints, func(e mesh.SliceEndpoint) bool { return e.Held }) {
			continue
		}
		c := *s
		c.Endpoints = slices.Clone(s.Endpoints)
		for i := range c.Endpoints {
			c.Endpoints[i].Held = false
		}
		events = append(events, mesh.Event{Object: &c})
	}
	f.setLocked(events)
}
