package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// envoyProxy runs an Envoy process with the bootstrap of this pod.
type envoyProxy struct {
	cfg         *ProxyConfig
	bootstrap   []byte
	admin       string // HOST:PORT
	own         ports
	sidecar     bool
	ipv6        bool
	concurrency int
	logLevel    string // of Envoy; "warning"
	logParts    string // component levels; "misc:error"
	stdout      io.Writer
	stderr      io.Writer
	log         *slog.Logger

	served atomic.Bool // it was ready once
}

// Run starts Envoy and waits for its end, which is an error unless ctx ended first.
func (e *envoyProxy) Run(ctx context.Context) error {
	file := filepath.Join(e.cfg.ConfigPath, "envoy-rev.json")
	if err := writeFile(file, e.bootstrap, 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, e.cfg.BinaryPath, e.args(file)...)
	cmd.Stdout, cmd.Stderr = e.stdout, e.stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second // then SIGKILL
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting Envoy: %w", err)
	}
	e.log.Info("Envoy started", "pid", cmd.Process.Pid, "bootstrap", file)
	err := cmd.Wait()
	if ctx.Err() != nil {
		e.log.Info("Envoy stopped")
		return nil
	}
	if err == nil {
		err = errors.New("exit status 0")
	}
	return fmt.Errorf("Envoy ended: %w", err)
}

func (e *envoyProxy) args(file string) []string {
	version := "v4"
	if e.ipv6 {
		version = "v6"
	}
	seconds := strconv.Itoa(int(time.Duration(e.cfg.DrainDuration) / time.Second))
	args := []string{
		"-c", file, "--drain-time-s", seconds, "--drain-strategy", "immediate",
		"--local-address-ip-version", version, "--file-flush-interval-msec", "1000",
		"--disable-hot-restart", "--allow-unknown-static-fields", "--skip-deprecated-logs",
		"-l", e.logLevel, "--log-format", "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v\tthread=%t",
	}
	if e.logParts != "" {
		args = append(args, "--component-log-level", e.logParts)
	}
	if e.concurrency > 0 {
		args = append(args, "--concurrency", strconv.Itoa(e.concurrency))
	}
	return args
}

// Ready asks Envoy whether it has its configuration and its listeners work.
func (e *envoyProxy) Ready(ctx context.Context) error {
	s, err := e.stats(ctx, `^(cluster_manager\.cds\.update_(success|rejected)|listener_manager\.(lds\.update_(success|rejected)|workers_started)|server\.state|http\..*\.rds\..*\.update_(success|rejected))$`)
	if err != nil {
		return fmt.Errorf("Envoy does not answer: %w", err)
	}
	cds, lds := "cluster_manager.cds.update_", "listener_manager.lds.update_"
	if s[cds+"success"]+s[cds+"rejected"] == 0 || s[lds+"success"]+s[lds+"rejected"] == 0 {
		return fmt.Errorf("no configuration from the control plane at %s yet: clusters: %d accepted, %d refused; listeners: %d accepted, %d refused",
			e.cfg.DiscoveryAddress, s[cds+"success"], s[cds+"rejected"], s[lds+"success"], s[lds+"rejected"])
	}
	if s["listener_manager.workers_started"] == 0 {
		return errors.New("Envoy has not started its workers")
	}
	if state := s["server.state"]; state != 0 {
		return fmt.Errorf("Envoy is %s", []string{"live", "draining", "pre-initializing", "initializing"}[min(max(state, 0), 3)])
	}
	if !e.served.Load() {
		if refused := firstRefused(s); refused != "" {
			return fmt.Errorf("the first %s from the control plane were refused; Envoy's log says why", refused)
		}
		e.served.Store(true) // what is refused later leaves in force what served before
	}
	return nil
}

// firstRefused names the resources of the first configuration that Envoy has refused and not accepted since; it
// returns "" if Envoy has accepted all.
func firstRefused(stats map[string]int) string {
	for _, name := range slices.Sorted(maps.Keys(stats)) {
		of, rejected := strings.CutSuffix(name, ".update_rejected")
		if !rejected || stats[name] == 0 || stats[of+".update_success"] > 0 {
			continue
		}
		switch of {
		case "cluster_manager.cds":
			return "clusters"
		case "listener_manager.lds":
			return "listeners"
		}
		_, table, _ := strings.Cut(of, ".rds.")
		return "routes (table " + table + ")"
	}
	return ""
}

// Drain makes Envoy's listeners finish their connections; it does not wait. A sidecar goes on
// taking outbound connections, as the application may need them for its own end.
func (e *envoyProxy) Drain(ctx context.Context) error {
	path := "/drain_listeners?graceful"
	if e.sidecar {
		path += "&inboundonly"
	}
	resp, err := e.request(ctx, http.MethodPost, path)
	if err != nil {
		return err
	}
	return resp.Close()
}

// Connections counts the connections that Envoy's listeners have, but for the agent's own.
func (e *envoyProxy) Connections(ctx context.Context) (int, error) {
	s, err := e.stats(ctx, `^listener\..*\.downstream_cx_active$`)
	if err != nil {
		return 0, err
	}
	n := 0
	for name, v := range s {
		if strings.Contains(name, ".admin.") || strings.Contains(name, ".worker_") ||
			strings.Contains(name, fmt.Sprintf("_%d.", e.own.health)) || strings.Contains(name, fmt.Sprintf("_%d.", e.own.prometheus)) {
			continue
		}
		n += v
	}
	return n, nil
}

// Metrics writes Envoy's metrics in Prometheus' text format.
func (e *envoyProxy) Metrics(ctx context.Context, w io.Writer) error {
	return scrape(ctx, (&net.Dialer{}).DialContext, "http://"+e.admin+"/stats/prometheus", w)
}

// stats returns the statistics whose names match a regular expression.
func (e *envoyProxy) stats(ctx context.Context, filter string) (map[string]int, error) {
	body, err := e.request(ctx, http.MethodGet, "/stats?filter="+url.QueryEscape(filter))
	if err != nil {
		return nil, err
	}
	defer body.Close()
	m := map[string]int{}
	lines := bufio.NewScanner(io.LimitReader(body, maxMetrics))
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), ": ")
		if n, err := strconv.Atoi(value); ok && err == nil {
			m[name] = n
		}
	}
	return m, lines.Err()
}

func (e *envoyProxy) request(ctx context.Context, method, path string) (io.ReadCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	req, err := http.NewRequestWithContext(ctx, method, "http://"+e.admin+path, nil)
	if err != nil {
		cancel()
		return nil, err
	}
	t := &http.Transport{DisableKeepAlives: true}
	resp, err := t.RoundTrip(req)
	if err != nil {
		cancel()
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		cancel()
		resp.Body.Close()
		return nil, fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return body{resp.Body, cancel}, nil
}

// body ends its request's context when it is closed.
type body struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b body) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

// writeFile writes a file in place of an old one, at once or not at all.
func writeFile(path string, b []byte, mode os.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer os.Remove(tmp.Name()) // no more there after the rename
	_, err = tmp.Write(b)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
