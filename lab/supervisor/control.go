package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/lab/state"
	"github.com/carrick-mesh/carrick/lab/topo"
	"github.com/carrick-mesh/carrick/lab/wan"
)

// Status is what a lab says of itself.
type Status struct {
	RunID      string          `json:"runId"`
	Ready      bool            `json:"ready"`
	Kubeconfig string          `json:"kubeconfig"`
	WAN        string          `json:"wan"` // in wan.Parse's words
	Clusters   []ClusterStatus `json:"clusters"`
}

// ClusterStatus is one cluster's part of a Status.
type ClusterStatus struct {
	Name   string       `json:"name"`
	Server string       `json:"server"`
	Proxy  string       `json:"proxy"` // the CONNECT proxy that reaches it from the machine
	LAN    string       `json:"lan"`
	Pool   string       `json:"pool"` // free addresses for load balancers, FIRST-LAST
	Pods   string       `json:"pods"`
	Client string       `json:"client"` // the address of the plain host
	Nodes  []NodeStatus `json:"nodes"`
}

// NodeStatus is one node's part of a Status.
type NodeStatus struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	PID     int    `json:"pid"` // of its process 1; 0: it is stopped
	Ready   bool   `json:"ready"`
}

func (s *Supervisor) status(ctx context.Context) Status {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	st := Status{
		RunID: s.Topology.RunID, Ready: s.Lab.Ready(), Kubeconfig: s.Lab.Kubeconfig(),
		WAN: s.link.Fault().String(), Clusters: make([]ClusterStatus, len(s.Topology.Clusters)),
	}
	s.each(func(c *topo.Cluster) error {
		ready, err := s.apis[c.Name].readyNodes(ctx) // one that does not answer has no Ready nodes
		cs := ClusterStatus{
			Name: c.Name, Server: c.Server(), Proxy: "http://" + s.ports[c.Name], LAN: c.LAN.String(),
			Pool: fmt.Sprintf("%s-%s", c.Pool[0], c.Pool[1]), Pods: c.PodNet.String(), Client: c.Client.Address.String(),
		}
		for _, n := range c.Nodes {
			cs.Nodes = append(cs.Nodes, NodeStatus{n.Name, n.Address.String(), state.PID(s.Lab.Node(n.Name, "pid")), ready[n.Name]})
		}
		st.Clusters[c.Number-1] = cs
		return err
	})
	return st
}

// listen serves the control socket:
//
//	GET  /status
//	POST /wan               body: wan.Parse's words; answers with all of them that now hold
//	POST /node/NAME/stop    cuts a node's power
//	POST /node/NAME/start
func (s *Supervisor) listen(ctx context.Context, cancel context.CancelCauseFunc) error {
	l, err := net.Listen("unix", s.Lab.Socket())
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(s.status(r.Context()))
	})
	mux.HandleFunc("POST /wan", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(io.LimitReader(r.Body, 4<<10))
		var f wan.Fault
		if err == nil {
			f, err = s.link.Do(strings.Fields(string(b)))
		}
		answer(w, f.String(), err)
	})
	mux.HandleFunc("POST /node/{name}/{verb}", func(w http.ResponseWriter, r *http.Request) {
		answer(w, "ok", s.nodeVerb(r.Context(), r.PathValue("name"), r.PathValue("verb")))
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { srv.Close() })
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			cancel(err)
		}
	}()
	return nil
}

func answer(w http.ResponseWriter, text string, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintln(w, text)
}

func (s *Supervisor) nodeVerb(ctx context.Context, name, verb string) error {
	c, n := s.Topology.Find(name)
	if n == nil {
		return fmt.Errorf("no node %q; there are %s", name, strings.Join(s.Topology.Hosts(), ", "))
	}
	var act func() error
	switch verb {
	case "stop":
		act = func() error { return s.stopNode(n) }
	case "start":
		if state.PID(s.Lab.Node(n.Name, "pid")) != 0 {
			return fmt.Errorf("node %s is already running", n.Name)
		}
		act = func() error { return s.startNode(c, n) }
	default:
		return fmt.Errorf("unknown verb %q: want stop or start", verb)
	}
	done := make(chan error, 1)
	select {
	case s.start <- func() { done <- act() }:
		return <-done
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Ask sends one request to a lab's control socket and returns the answer.
func Ask(ctx context.Context, lab state.Lab, method, path, body string) ([]byte, error) {
	if _, err := lab.Topology(); err != nil {
		return nil, err
	}
	c := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", lab.Socket())
		},
	}}
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r, err := c.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking lab %q: %w", lab.ID, err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err == nil && r.StatusCode != http.StatusOK {
		err = errors.New(string(bytes.TrimSpace(b)))
	}
	return b, err
}
