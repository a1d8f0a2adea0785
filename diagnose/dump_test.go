package diagnose

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carrick-mesh/carrick/test/envoytest"
)

var update = flag.Bool("update", false, "write golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// rows prints a dump's rows, one a line.
func rows(d *Dump) string {
	var b strings.Builder
	for _, r := range d.ClusterRows() {
		fmt.Fprintf(&b, "cluster | %s | %s | %s | %s | %s | %s\n", r.FQDN, r.Port, r.Subset, r.Direction, r.Type, r.Rule)
	}
	for _, r := range d.ListenerRows() {
		fmt.Fprintf(&b, "listener | %s | %s | %s | %s | %s\n", r.Address, r.Port, r.Match, r.Destination, r.Type)
	}
	for _, r := range d.RouteRows() {
		fmt.Fprintf(&b, "route | %s | %s | %s | %s | %s\n", r.Name, r.VirtualHost, r.Domains, r.Match, r.VirtualService)
	}
	return b.String()
}

func TestDump(t *testing.T) {
	d, err := ParseDump(read(t, "sleep.dump.json"))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "sleep.rows.golden", rows(d))
	o := d.Origins()
	if len(o) == 0 {
		t.Error("no endpoint says which cluster it is in")
	}
}

func TestEndpoints(t *testing.T) {
	es, err := ParseEndpoints(read(t, "sleep.clusters.json"))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range es {
		fmt.Fprintf(&b, "%s | %s | %s | %s | %s\n", e.HostPort(), e.Status, e.Outlier, e.Cluster, e.Weight)
	}
	golden(t, "sleep.endpoints.golden", b.String())
}

func TestCamel(t *testing.T) {
	in := `{"route_config":{"virtual_hosts":[{"name":"a_b","per_filter":{"envoy.filters.x_y":1}}],"metadata":{"filter_metadata":{"istio":{"my_key":1}}}},"node":{"metadata":{"MY_KEY":{"my_key":1}}}}`
	want := `{"node":{"metadata":{"MY_KEY":{"my_key":1}}},"routeConfig":{"metadata":{"filterMetadata":{"istio":{"my_key":1}}},"virtualHosts":[{"name":"a_b","perFilter":{"envoy.filters.x_y":1}}]}}`
	v, err := decode([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(Camel(v))
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestBadDumps(t *testing.T) {
	for in, want := range map[string]string{"": "not JSON", "[]": "no field configs", `{"a":1}`: "no field configs"} {
		if _, err := ParseDump([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseDump(%q): error is %v, want one with %q", in, err, want)
		}
	}
}

// TestEnvoy reads what genuine Envoy says of itself.
func TestEnvoy(t *testing.T) {
	envoy := envoytest.Program(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	admin := l.Addr().(*net.TCPAddr).Port
	l.Close()
	dir := t.TempDir()
	config := filepath.Join(dir, "envoy.yaml")
	text := strings.ReplaceAll(string(read(t, "envoy.yaml")), "ADMINPORT", fmt.Sprint(admin))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, envoy, "-c", config, "--concurrency", "1", "--disable-hot-restart", "-l", "error")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	get := func(path string) []byte {
		for {
			req, _ := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://127.0.0.1:%d/%s", admin, path), nil)
			resp, err := http.DefaultClient.Do(req)
			if err == nil {
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err == nil && resp.StatusCode == 200 && len(b) > 0 && strings.Contains(string(b), "app") {
					return b
				}
			}
			select {
			case <-ctx.Done():
				t.Fatalf("Envoy's admin server does not answer: %v", err)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	d, err := ParseDump(get("config_dump?include_eds"))
	if err != nil {
		t.Fatal(err)
	}
	es, err := ParseEndpoints(get("clusters?format=json"))
	if err != nil {
		t.Fatal(err)
	}
	got := rows(d)
	for _, e := range es {
		got += fmt.Sprintf("endpoint | %s | %s | %s | %s | %s\n", e.HostPort(), e.Status, e.Outlier, e.Cluster, e.Weight)
	}
	golden(t, "envoy.rows.golden", got)
}

func FuzzParseDump(f *testing.F) {
	f.Add(read(f, "sleep.dump.json"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := ParseDump(b); err == nil {
			rows(d)
			d.SecretRows(time.Unix(0, 0))
			d.Origins()
		}
	})
}

func FuzzParseEndpoints(f *testing.F) {
	f.Add(read(f, "sleep.clusters.json"))
	f.Fuzz(func(t *testing.T, b []byte) {
		es, _ := ParseEndpoints(b)
		for _, e := range es {
			e.HostPort()
		}
	})
}
