package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// GRPCFiles are what an application with gRPC's own xDS client reads in place of having a proxy. Both
// are in folders that its container shares.
type GRPCFiles struct {
	Bootstrap    string // file; CONFIG_PATH/grpc-bootstrap.json
	Certificates string // folder of cert-chain.pem, key.pem and root-cert.pem; /var/lib/istio/data
}

// Who shares the pod's group (its fsGroup) may use the socket and read the key: the application runs
// as another user than the agent.
const (
	sharedSocket = 0o660
	sharedKey    = 0o640
)

// certificateRefresh is how often gRPC looks whether the files have changed. It bounds how long a
// client goes on with roots that are not the mesh's any more, so it is within settleTimeout.
const certificateRefresh = time.Second

// proxyless keeps the files of a pod without a proxy.
type proxyless struct {
	files   GRPCFiles
	certs   *Certificates
	log     *slog.Logger
	written atomic.Pointer[filed] // nil: not all are there
}

// filed is what the files hold.
type filed struct {
	roots string    // PEM
	since time.Time // when these roots were written
}

// startProxyless serves the control plane's streams on the unix socket XDS and keeps the files, in g.
func startProxyless(life context.Context, g *errgroup.Group, o Options, certs *Certificates) (dataPlane, error) {
	dir, err := filepath.Abs(o.Config.ConfigPath)
	if err != nil {
		return nil, fmt.Errorf("the proxy's folder: %w", err)
	}
	for _, d := range []string{dir, filepath.Dir(o.GRPC.Bootstrap), o.GRPC.Certificates} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("the folder for gRPC's files: %w", err)
		}
	}
	n := node(o.Router, o.Pod, o.Meta, o.Config, ports{o.HealthPort, o.PrometheusPort})
	n.Metadata["GENERATOR"] = "grpc"
	b, err := grpcBootstrap(n, filepath.Join(dir, xdsSocket), o.GRPC.Certificates)
	if err != nil {
		return nil, err
	}
	p := &proxyless{files: o.GRPC, certs: certs, log: o.Logger}
	r := &relay{upstream: o.endpoint(o.Config.DiscoveryAddress, certs.Roots), certs: certs, settle: p.settle, log: o.Logger}
	listening := make(chan struct{})
	g.Go(func() error {
		return serveSockets(life, dir, map[string]*grpc.Server{xdsSocket: r.server()}, sharedSocket, func() { close(listening) })
	})
	g.Go(func() error {
		select {
		case <-listening: // before the bootstrap that names it
			return p.Run(life, b)
		case <-life.Done():
			return nil
		}
	})
	return p, nil
}

// Run writes the bootstrap once there are certificates, and the certificates whenever they change,
// until ctx ends.
func (p *proxyless) Run(ctx context.Context, bootstrap []byte) error {
	for {
		cr, changed := p.certs.Current()
		if cr != nil {
			if err := writeCertificates(p.files.Certificates, cr); err != nil {
				return err
			}
			last, now := p.written.Load(), &filed{string(cr.RootsPEM), time.Now()}
			if last != nil && last.roots == now.roots {
				now.since = last.since
			}
			p.written.Store(now)
			if last == nil {
				if err := writeFile(p.files.Bootstrap, bootstrap, 0o644); err != nil {
					return err
				}
				if len(cr.CRL) > 0 {
					p.log.Warn("gRPC's file watcher knows no revocation lists: this workload accepts revoked certificates")
				}
				p.log.Info("gRPC's files are written", "bootstrap", p.files.Bootstrap, "certificates", p.files.Certificates)
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// settle waits until the application's gRPC has had the time to read the roots of the moment.
func (p *proxyless) settle(ctx context.Context) error {
	cr, _ := p.certs.Current()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		w := p.written.Load()
		if cr == nil || w != nil && w.roots == string(cr.RootsPEM) && time.Since(w.since) > certificateRefresh {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Ready wants the files to be there.
func (p *proxyless) Ready(context.Context) error {
	if p.written.Load() == nil {
		return errors.New("gRPC's certificates are not written yet")
	}
	if _, err := os.Stat(p.files.Bootstrap); err != nil {
		return fmt.Errorf("gRPC's bootstrap: %w", err)
	}
	return nil
}

// Drain, Connections and Metrics have nothing to do: the application's connections are its own.

func (p *proxyless) Drain(context.Context) error              { return nil }
func (p *proxyless) Connections(context.Context) (int, error) { return 0, nil }
func (p *proxyless) Metrics(context.Context, io.Writer) error { return nil }

// grpcBootstrap makes the bootstrap of gRPC's xDS clients and servers (gRFCs A27, A29, A36), as
// Istio's agent does: the control plane by a socket, the workload's certificate by files.
func grpcBootstrap(n Node, socket, certificates string) ([]byte, error) {
	node, err := n.json()
	if err != nil {
		return nil, err
	}
	type object = map[string]any
	b, err := json.MarshalIndent(object{
		"xds_servers": []object{{
			"server_uri":      "unix://" + socket,
			"channel_creds":   []object{{"type": "insecure"}},
			"server_features": []string{"xds_v3"},
		}},
		"node": node,
		"certificate_providers": object{"default": object{
			"plugin_name": "file_watcher",
			"config": object{
				"certificate_file":    filepath.Join(certificates, "cert-chain.pem"),
				"private_key_file":    filepath.Join(certificates, "key.pem"),
				"ca_certificate_file": filepath.Join(certificates, "root-cert.pem"),
				"refresh_interval":    fmt.Sprintf("%gs", certificateRefresh.Seconds()),
			},
		}},
		"server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%s",
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding gRPC's bootstrap: %w", err)
	}
	return append(b, '\n'), nil
}
