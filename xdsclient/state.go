package xdsclient

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	status "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

	"github.com/carrick-mesh/carrick/resource"
)

// state is what a client holds and waits for. It has no clock and no stream.
type state struct {
	decode  func(string, *resource.Resource) ([]Name, error)
	whole   []string // types wanted whole
	also    []Name
	timeout time.Duration

	come      map[string]bool // types wanted whole that have come; they are awaited for ever
	held      map[Name]*held
	changed   bool // since the last set
	newNeeds  bool // since want ran
	streaming bool // a stream is up: only then can time run out
}

const maxRefusal = 16 << 10 // bytes of a refusal

// held is a resource that is held, or wanted by name, or both.
type held struct {
	res     Resource // Resource.Resource is nil: none
	needs   []Name
	wanted  bool      // by name
	since   time.Time // asked for by name and not answered; zero: answered or given up
	absent  bool      // the server says that it does not exist, or does not answer
	refused bool      // the last that came could not be used
}

func newState(o Options) *state {
	return &state{
		decode: o.Decode, whole: o.Types, also: o.Also, timeout: o.Timeout,
		come: map[string]bool{}, held: map[Name]*held{},
	}
}

func (s *state) isWhole(typeURL string) bool { return slices.Contains(s.whole, typeURL) }
func (s *state) isAlso(n Name) bool          { return slices.Contains(s.also, n) }

// open returns the first requests of a stream.
func (s *state) open(now time.Time) []*discovery.DeltaDiscoveryRequest {
	s.streaming = true
	var out []*discovery.DeltaDiscoveryRequest
	for _, t := range s.whole {
		out = append(out, &discovery.DeltaDiscoveryRequest{TypeUrl: t, InitialResourceVersions: s.versions(t)})
	}
	for _, n := range s.also {
		if s.held[n] == nil {
			s.held[n] = &held{}
		}
	}
	byType := map[string][]string{}
	for n, h := range s.held {
		if !h.since.IsZero() {
			h.since = now
		}
		if h.wanted || s.isAlso(n) {
			byType[n.Type] = append(byType[n.Type], n.Name)
		}
	}
	for _, t := range slices.Sorted(maps.Keys(byType)) {
		slices.Sort(byType[t])
		out = append(out, &discovery.DeltaDiscoveryRequest{TypeUrl: t, ResourceNamesSubscribe: byType[t], InitialResourceVersions: s.versions(t)})
	}
	return out
}

// closed notes that there is no stream.
func (s *state) closed() { s.streaming = false }

func (s *state) versions(typeURL string) map[string]string {
	out := map[string]string{}
	for n, h := range s.held {
		// A resource that was refused is asked for anew: the version held is not the last one sent.
		if n.Type == typeURL && h.res.Resource != nil && !h.refused {
			out[n.Name] = h.res.Version
		}
	}
	return out
}

// take takes a response and returns the answer to it and the requests that follow from it.
func (s *state) take(resp *discovery.DeltaDiscoveryResponse, now time.Time) (answer *discovery.DeltaDiscoveryRequest, more []*discovery.DeltaDiscoveryRequest) {
	answer = &discovery.DeltaDiscoveryRequest{TypeUrl: resp.TypeUrl, ResponseNonce: resp.Nonce}
	if s.isWhole(resp.TypeUrl) && !s.come[resp.TypeUrl] {
		s.come[resp.TypeUrl] = true
		s.changed = true
	}
	var refusals []string
	for _, r := range resp.Resources {
		if err := s.put(resp.TypeUrl, r, now); err != nil {
			refusals = append(refusals, err.Error())
		}
	}
	for _, name := range resp.RemovedResources {
		s.remove(Name{resp.TypeUrl, name})
	}
	if refusals != nil {
		msg := strings.Join(refusals, "; ")
		answer.ErrorDetail = &status.Status{Code: int32(codes.InvalidArgument), Message: msg[:min(len(msg), maxRefusal)]}
	}
	if s.newNeeds {
		s.newNeeds = false
		more = s.want(now)
	}
	return answer, more
}

func (s *state) put(typeURL string, r *discovery.Resource, now time.Time) error {
	n := Name{typeURL, r.GetName()}
	h := s.held[n]
	if h == nil {
		if !s.isWhole(typeURL) {
			return nil // no longer wanted
		}
		h = &held{}
		s.held[n] = h
	}
	if !h.since.IsZero() || h.absent {
		s.changed = true
	}
	h.since, h.absent = time.Time{}, false
	if r.Resource == nil {
		return nil // a heartbeat
	}
	if got := r.Resource.TypeUrl; got != typeURL {
		h.refused = true
		return fmt.Errorf("resource %q is of type %s, not %s", n.Name, got, typeURL)
	}
	res := Resource{Resource: resource.New(n.Name, r.Resource.Value), Type: typeURL, Version: r.Version, Updated: now}
	needs, err := s.decode(typeURL, res.Resource)
	if err != nil {
		h.refused = true
		return err
	}
	h.refused = false
	if h.res.Resource != nil && h.res.Resource.Version == res.Resource.Version {
		h.res.Version = res.Version // the same content: nothing changes
		return nil
	}
	s.newNeeds = s.newNeeds || !slices.Equal(h.needs, needs)
	h.res, h.needs = res, needs
	s.changed = s.changed || !s.isAlso(n)
	return nil
}

func (s *state) remove(n Name) {
	h := s.held[n]
	if h == nil {
		return
	}
	s.changed = s.changed || h.res.Resource != nil || h.refused || !h.since.IsZero()
	s.newNeeds = s.newNeeds || len(h.needs) > 0
	if !h.wanted && !s.isAlso(n) {
		delete(s.held, n)
		return
	}
	*h = held{wanted: h.wanted, absent: true}
}

// want brings the names asked for in line with what the resources held need, and returns requests that
// say so. A resource that nothing needs any more is dropped.
func (s *state) want(now time.Time) []*discovery.DeltaDiscoveryRequest {
	need := map[Name]bool{}
	for _, h := range s.held {
		for _, n := range h.needs {
			if !s.isWhole(n.Type) {
				need[n] = true
			}
		}
	}
	requests := map[string]*discovery.DeltaDiscoveryRequest{}
	of := func(t string) *discovery.DeltaDiscoveryRequest {
		if requests[t] == nil {
			requests[t] = &discovery.DeltaDiscoveryRequest{TypeUrl: t}
		}
		return requests[t]
	}
	for n := range need {
		h := s.held[n]
		if h == nil {
			h = &held{}
			s.held[n] = h
		}
		if !h.wanted {
			h.wanted, h.since = true, now
			of(n.Type).ResourceNamesSubscribe = append(of(n.Type).ResourceNamesSubscribe, n.Name)
		}
	}
	for n, h := range s.held {
		if h.wanted && !need[n] {
			delete(s.held, n)
			s.changed = true
			of(n.Type).ResourceNamesUnsubscribe = append(of(n.Type).ResourceNamesUnsubscribe, n.Name)
		}
	}
	var out []*discovery.DeltaDiscoveryRequest
	for _, t := range slices.Sorted(maps.Keys(requests)) {
		slices.Sort(requests[t].ResourceNamesSubscribe)
		slices.Sort(requests[t].ResourceNamesUnsubscribe)
		out = append(out, requests[t])
	}
	return out
}

// complete reports whether nothing is awaited.
func (s *state) complete() bool {
	for _, t := range s.whole {
		if !s.come[t] {
			return false
		}
	}
	for n, h := range s.held {
		if !h.since.IsZero() && !s.isAlso(n) {
			return false
		}
	}
	return true
}

// deadline returns when the first of what is awaited is to be given up on; zero: never.
func (s *state) deadline() time.Time {
	var first time.Time
	if !s.streaming {
		return first
	}
	for _, h := range s.held {
		if at := h.since.Add(s.timeout); !h.since.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	return first
}

// expire gives up on what has been awaited too long and returns it.
func (s *state) expire(now time.Time) []Name {
	if !s.streaming {
		return nil
	}
	var out []Name
	for n, h := range s.held {
		if !h.since.IsZero() && !now.Before(h.since.Add(s.timeout)) {
			h.since, h.absent = time.Time{}, true
			out = append(out, n)
		}
	}
	s.changed = s.changed || out != nil
	return out
}

// set returns all that is held, by type (those wanted whole first) and name.
func (s *state) set() []Resource {
	out := make([]Resource, 0, len(s.held))
	for n, h := range s.held {
		if h.res.Resource != nil && !s.isAlso(n) {
			out = append(out, h.res)
		}
	}
	rank := func(t string) int {
		if i := slices.Index(s.whole, t); i >= 0 {
			return i
		}
		return len(s.whole)
	}
	slices.SortFunc(out, func(a, b Resource) int {
		if d := rank(a.Type) - rank(b.Type); d != 0 {
			return d
		}
		if d := strings.Compare(a.Type, b.Type); d != 0 {
			return d
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}

// missing returns what is held of no version, for each that came was refused.
func (s *state) missing() (names []Name) {
	for n, h := range s.held {
		if h.refused && h.res.Resource == nil && !s.isAlso(n) {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, func(a, b Name) int { return strings.Compare(a.Type+a.Name, b.Type+b.Name) })
	return names
}
