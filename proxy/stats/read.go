package stats

import (
	"reflect"
	"strconv"
	"strings"
)

// sample is one statistic at one moment.
type sample struct {
	scope scope
	name  string // below the scope
	label string // envoy_response_code or envoy_response_code_class, for codes
	value string // of the label
	kind  kind
	n     int64         // counters and gauges
	dist  *distribution // histograms
}

type kind uint8

const (
	counter kind = iota
	gauge
	histogram
)

// scope is where a statistic belongs: "cluster" and the cluster's name. The zero scope is the process.
type scope struct{ prefix, name string }

// labels are the Prometheus labels of scopes by prefix.
var scopeLabels = map[string]string{
	"cluster": "envoy_cluster_name", "http": "envoy_http_conn_manager_prefix",
	"tcp": "envoy_tcp_prefix", "listener": "envoy_listener_address",
}

// full returns the name as in /stats.
func (s *sample) full() string {
	name := s.name
	switch s.label {
	case codeLabel:
		name += "_" + s.value
	case classLabel:
		name = strings.TrimSuffix(name, "_xx") + "_" + s.value + "xx"
	}
	if s.scope.prefix == "" {
		return name
	}
	return s.scope.prefix + "." + s.scope.name + "." + name
}

func (s *sample) used() bool {
	if s.dist != nil {
		return s.dist.count() > 0
	}
	return s.n != 0
}

const codeLabel, classLabel = "envoy_response_code", "envoy_response_code_class"

// read returns all statistics but Istio's, ordered by scope; without idle, only of scopes that have
// ever been used.
func (s *Store) read(idle bool) []sample {
	out := readSet(scope{}, []*Process{s.Process})
	out = append(out, readScopes("cluster", snapshot(s, s.clusters), idle)...)
	out = append(out, readScopes("http", snapshot(s, s.https), idle)...)
	out = append(out, readScopes("listener", snapshot(s, s.listeners), idle)...)
	return append(out, readScopes("tcp", snapshot(s, s.tcps), idle)...)
}

func readScopes[T any](prefix string, all []scoped[T], idle bool) []sample {
	var out []sample
	for _, c := range all {
		if shards := c.set.used(); idle || len(shards) > 0 {
			out = append(out, readSet(scope{prefix, c.name}, shards)...)
		}
	}
	return out
}

// readSet adds up the shards of one scope, field by field.
func readSet[T any](sc scope, shards []*T) []sample {
	if len(shards) == 0 {
		shards = []*T{new(T)}
	}
	var out []sample
	t := reflect.TypeFor[T]()
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("stat"), ",")
		if name == "" {
			continue
		}
		s := sample{scope: sc, name: name}
		codes := map[int]uint64{}
		for _, shard := range shards {
			switch m := reflect.ValueOf(shard).Elem().Field(i).Addr().Interface().(type) {
			case *Counter:
				s.n += int64(m.Value())
			case *Gauge:
				s.kind = gauge
				s.n += m.Value()
			case *Histogram:
				s.kind = histogram
				if s.dist == nil {
					s.dist = &distribution{}
				}
				s.dist.add(m)
			case *Codes:
				s.label = codeLabel
				for class := range m.classes {
					codes[class] += m.classes[class].Load()
				}
				for j := range m.list {
					codes[int(m.list[j].code.Load())] += m.list[j].n.Load()
				}
			}
		}
		if s.label == "" {
			out = append(out, s)
			continue
		}
		for class := 1; class <= 5; class++ {
			out = append(out, sample{scope: sc, name: name + "_xx", label: classLabel, value: strconv.Itoa(class), n: int64(codes[class])})
		}
		for code := 100; code < 600; code++ {
			if n := codes[code]; n > 0 {
				out = append(out, sample{scope: sc, name: name, label: codeLabel, value: strconv.Itoa(code), n: int64(n)})
			}
		}
	}
	return out
}
