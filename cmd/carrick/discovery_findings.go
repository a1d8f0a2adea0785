package main

import (
	"maps"
	"slices"
	"sync"

	"github.com/carrick-mesh/carrick/mesh"
)

// findings joins what the control loop and the CA find wrong, each whole, for their one writer.
type findings struct {
	write func(map[mesh.Key][]mesh.Finding)

	mu      sync.Mutex
	control map[mesh.Key][]mesh.Finding
	ca      map[mesh.Key][]mesh.Finding
}

func (f *findings) fromControl(all map[mesh.Key][]mesh.Finding) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.control = all
	f.join()
}

// fromCA takes what is wrong with the CA of a Secret.
func (f *findings) fromCA(secret mesh.Key, wrong []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ca = map[mesh.Key][]mesh.Finding{}
	for _, s := range wrong {
		f.ca[secret] = append(f.ca[secret], mesh.Finding{Object: secret, Message: s})
	}
	f.join()
}

func (f *findings) join() {
	all := maps.Clone(f.control)
	if all == nil {
		all = map[mesh.Key][]mesh.Finding{}
	}
	for k, fs := range f.ca {
		all[k] = append(slices.Clone(all[k]), fs...)
	}
	f.write(all)
}
