// Package stats counts what the data plane does, under Envoy's and Istio's names. Each loop has
// statistics of its own (a shard), which are added up when they are read. It knows names and forms,
// not what happened.
package stats

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// Store is the statistics of a process. Safe for concurrent use.
type Store struct {
	shards  int
	Process *Process
	Istio   *Istio

	mu        sync.Mutex
	clusters  map[string]*Set[Cluster]
	https     map[string]*Set[HTTP]
	tcps      map[string]*Set[TCP]
	listeners map[string]*Set[Listener]
}

// NewStore returns a store for so many loops. Local says whose statistics they are.
func NewStore(shards int, local Local) *Store {
	return &Store{
		shards: shards, Process: &Process{}, Istio: newIstio(shards, local),
		clusters: map[string]*Set[Cluster]{}, https: map[string]*Set[HTTP]{},
		tcps: map[string]*Set[TCP]{}, listeners: map[string]*Set[Listener]{},
	}
}

// Set is one group of statistics, in shards. A shard takes memory when it is first used, so that the
// clusters that a proxy knows of and never calls cost nothing.
type Set[T any] struct {
	shards []atomic.Pointer[T]
}

// Shard returns the statistics of loop i.
func (s *Set[T]) Shard(i int) *T {
	if t := s.shards[i].Load(); t != nil {
		return t
	}
	t := new(T)
	if s.shards[i].CompareAndSwap(nil, t) {
		return t
	}
	return s.shards[i].Load()
}

// used returns the shards that have been used.
func (s *Set[T]) used() []*T {
	var out []*T
	for i := range s.shards {
		if t := s.shards[i].Load(); t != nil {
			out = append(out, t)
		}
	}
	return out
}

// Cluster returns the statistics of the cluster with that stat name.
func (s *Store) Cluster(name string) *Set[Cluster] { return set(s, s.clusters, name) }

// HTTP returns the statistics of the connection manager with that prefix.
func (s *Store) HTTP(prefix string) *Set[HTTP] { return set(s, s.https, prefix) }

// TCP returns the statistics of the TCP proxy with that prefix.
func (s *Store) TCP(prefix string) *Set[TCP] { return set(s, s.tcps, prefix) }

// Listener returns the statistics of the listener with that stat name.
func (s *Store) Listener(name string) *Set[Listener] { return set(s, s.listeners, name) }

func set[T any](s *Store, m map[string]*Set[T], name string) *Set[T] {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := m[name]
	if x == nil {
		x = &Set[T]{shards: make([]atomic.Pointer[T], s.shards)}
		m[name] = x
	}
	return x
}

// Names are the scopes that a configuration has.
type Names struct{ Clusters, HTTP, TCP, Listeners map[string]bool }

// Keep drops the statistics of scopes that are not named. Whoever still holds a Set may go on writing
// it; it is no longer shown.
func (s *Store) Keep(n Names) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep(s.clusters, n.Clusters)
	keep(s.https, n.HTTP)
	keep(s.tcps, n.TCP)
	keep(s.listeners, n.Listeners)
}

func keep[T any](m map[string]*Set[T], names map[string]bool) {
	maps.DeleteFunc(m, func(name string, _ *Set[T]) bool { return !names[name] })
}

// scoped is a set with its name.
type scoped[T any] struct {
	name string
	set  *Set[T]
}

// snapshot returns the scopes of one kind, by name.
func snapshot[T any](s *Store, m map[string]*Set[T]) []scoped[T] {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]scoped[T], 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, scoped[T]{name, m[name]})
	}
	return out
}
