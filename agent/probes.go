package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// Probe is one of the application's probes, as Kubernetes writes it, that injection has turned
// into a request to the agent: one of HTTPGet, TCPSocket and GRPC.
type Probe struct {
	HTTPGet *struct {
		Path        string    `json:"path"`
		Port        probePort `json:"port"`
		Host        string    `json:"host"` // only for the Host header; the pod is asked
		Scheme      string    `json:"scheme"`
		HTTPHeaders []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"httpHeaders"`
	} `json:"httpGet"`
	TCPSocket *struct {
		Port probePort `json:"port"`
	} `json:"tcpSocket"`
	GRPC *struct {
		Port    probePort `json:"port"`
		Service string    `json:"service"`
	} `json:"grpc"`
	TimeoutSeconds int `json:"timeoutSeconds"` // default 1
}

// probePort is a port number, in JSON a number or a string of digits.
type probePort uint16

func (p *probePort) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseUint(strings.Trim(string(b), `"`), 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("port %s is not a port number", b)
	}
	*p = probePort(n)
	return nil
}

// ParseProbes reads the JSON of ISTIO_KUBE_APP_PROBERS: paths such as
// /app-health/CONTAINER/readyz and /app-lifecycle/CONTAINER/prestopz with their probes. An empty string is an empty list.
func ParseProbes(s string) (map[string]*Probe, error) {
	if s == "" {
		return nil, nil
	}
	var m map[string]*Probe
	if err := json.Unmarshal([]byte(s), &m); err != nil {
		return nil, fmt.Errorf("ISTIO_KUBE_APP_PROBERS: %w", err)
	}
	for path, p := range m {
		if !strings.HasPrefix(path, "/app-health/") && !strings.HasPrefix(path, "/app-lifecycle/") {
			return nil, fmt.Errorf("ISTIO_KUBE_APP_PROBERS: %q does not begin with /app-health/ or /app-lifecycle/", path)
		}
		if p == nil || p.HTTPGet == nil && p.TCPSocket == nil && p.GRPC == nil {
			return nil, fmt.Errorf("ISTIO_KUBE_APP_PROBERS: %s: none of httpGet, tcpSocket, grpc", path)
		}
	}
	return m, nil
}

// prober asks the application at the pod's address, from the address that redirection lets pass.
type prober struct {
	host string // the pod's address
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// newProber returns a prober of the pod with that address; of loopback if it is not valid.
func newProber(pod netip.Addr) *prober {
	d := &net.Dialer{}
	host := "127.0.0.1"
	if pod.IsValid() {
		host = pod.String()
		from := netip.MustParseAddr("127.0.0.6")
		if pod.Is6() {
			from = netip.MustParseAddr("::6")
		}
		d.LocalAddr = &net.TCPAddr{IP: from.AsSlice()}
	}
	return &prober{host: host, dial: d.DialContext}
}

func (p *prober) address(port probePort) string {
	return net.JoinHostPort(p.host, strconv.Itoa(int(port)))
}

// serve answers a probe of the kubelet with what the application answers.
func (p *prober) serve(w http.ResponseWriter, r *http.Request, probe *Probe) {
	timeout := time.Duration(max(probe.TimeoutSeconds, 1)) * time.Second
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	var err error
	switch {
	case probe.HTTPGet != nil:
		p.http(ctx, w, r, probe)
		return
	case probe.TCPSocket != nil:
		err = p.tcp(ctx, probe.TCPSocket.Port)
	default:
		err = p.grpc(ctx, probe.GRPC.Port, probe.GRPC.Service)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusOK)
}

func (p *prober) tcp(ctx context.Context, port probePort) error {
	c, err := p.dial(ctx, "tcp", p.address(port))
	if err != nil {
		return err
	}
	return c.Close()
}

func (p *prober) grpc(ctx context.Context, port probePort, service string) error {
	conn, err := grpc.NewClient("passthrough:///"+p.address(port), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent("kube-probe"),
		grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) { return p.dial(ctx, "tcp", a) }))
	if err != nil {
		return err
	}
	defer conn.Close()
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
	if err != nil {
		return plain(err)
	}
	if resp.Status != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("the service is %s", resp.Status)
	}
	return nil
}

// http passes an HTTP probe on: the kubelet's own headers, then those of the probe. As the
// kubelet does, it follows redirects within the host and verifies no certificate.
func (p *prober) http(ctx context.Context, w http.ResponseWriter, r *http.Request, probe *Probe) {
	get := probe.HTTPGet
	scheme := "http"
	if strings.EqualFold(get.Scheme, "https") {
		scheme = "https"
	}
	u, err := url.Parse(scheme + "://" + p.address(get.Port) + "/" + strings.TrimPrefix(get.Path, "/"))
	if err != nil {
		http.Error(w, "the probe's path: "+err.Error(), http.StatusInternalServerError)
		return
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	req.Host = get.Host
	for k, v := range r.Header {
		if k != "Connection" && k != "Accept-Encoding" {
			req.Header[k] = v
		}
	}
	for _, h := range get.HTTPHeaders {
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
			continue
		}
		req.Header.Set(h.Name, h.Value)
	}
	client := http.Client{
		Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true, DialContext: p.dial,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}},
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			if next.URL.Host != via[0].URL.Host {
				return http.ErrUseLastResponse
			}
			if len(via) >= 10 {
				return errors.New("stopped after 10 redirects")
			}
			return nil
		},
	}
	resp, err := client.Do(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer resp.Body.Close()
	if loc := resp.Header.Get("Location"); loc != "" {
		w.Header().Set("Location", loc)
	}
	w.WriteHeader(resp.StatusCode)
	io.Copy(w, io.LimitReader(resp.Body, 10<<10)) // the kubelet reads no more
}
