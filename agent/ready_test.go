package agent

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/carrick-mesh/carrick/proxy"
	"github.com/carrick-mesh/carrick/resource"
	"github.com/carrick-mesh/carrick/xdsclient"
)

// A proxy whose first configuration was refused, even in part, is not ready, and says why; one that served goes on.
func TestFirstConfigurationRefused(t *testing.T) {
	px, err := proxy.New(proxy.Options{Concurrency: 1, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	table := xdsclient.Name{Type: resource.RouteType, Name: "http.80"}
	e := &builtin{proxy: px, log: slog.New(slog.DiscardHandler), configured: true}
	e.judged(table, errors.New(`route configuration "http.80": no good`))
	e.lacks([]xdsclient.Name{table})
	if err := e.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), `"http.80": no good`) {
		t.Errorf("with its first routes refused: %v", err)
	}
	e.judged(table, nil)
	e.lacks(nil)
	if err := e.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	e.judged(table, errors.New("no good again"))
	e.lacks([]xdsclient.Name{table})
	if err := e.Ready(t.Context()); err != nil {
		t.Errorf("a proxy that served: %v", err)
	}

	taken := map[string]int{"cluster_manager.cds.update_success": 1, "cluster_manager.cds.update_rejected": 2, "listener_manager.lds.update_success": 1}
	for name, c := range map[string]struct {
		more map[string]int
		want string
	}{
		"all is taken":  {nil, ""},
		"routes":        {map[string]int{"http.outbound_0.0.0.0_8080.rds.http.80.update_rejected": 1, "http.outbound_0.0.0.0_8080.rds.http.80.update_success": 0}, "routes (table http.80)"},
		"taken at last": {map[string]int{"http.x.rds.80.update_rejected": 1, "http.x.rds.80.update_success": 1}, ""},
		"listeners":     {map[string]int{"listener_manager.lds.update_success": 0, "listener_manager.lds.update_rejected": 1}, "listeners"},
	} {
		stats := map[string]int{}
		for _, m := range []map[string]int{taken, c.more} {
			for k, v := range m {
				stats[k] = v
			}
		}
		if got := firstRefused(stats); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
