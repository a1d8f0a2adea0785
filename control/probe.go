package control

import (
	"context"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/carrick-mesh/carrick/mesh"
)

// Probing of other networks' gateways.
const (
	probePeriod  = 2 * time.Second
	probeTimeout = 2 * time.Second
	probeMisses  = 2  // in a row, and a gateway is down
	probesAtOnce = 16 // bound of connections under way
)

type gatewayAddress struct {
	address string
	port    uint16
}

// probe looks whether the gateways of other networks take connections, and tells the mesh.
func (c *Control) probe(ctx context.Context) {
	misses := map[gatewayAddress]int{}
	tick := time.NewTicker(probePeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		snap := c.Snapshot()
		own := snap.Networks().Of(snap.Local())
		want := map[gatewayAddress]bool{}
		for _, g := range snap.Networks().Gateways {
			if g.Network != own {
				want[gatewayAddress{g.Address, g.Port}] = true
			}
		}
		var mu sync.Mutex
		var wg sync.WaitGroup
		slots := make(chan struct{}, probesAtOnce)
		var events []mesh.Event
		for a := range misses {
			if !want[a] {
				if misses[a] >= probeMisses {
					events = append(events, mesh.Gone((&mesh.GatewayHealth{Address: a.address, Port: a.port}).Key()))
				}
				delete(misses, a)
			}
		}
		for a := range want {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				err := reach(ctx, a)
				mu.Lock()
				defer mu.Unlock()
				was := misses[a]
				if err == nil {
					misses[a] = 0
				} else {
					misses[a]++
				}
				down := misses[a] >= probeMisses
				if down == (was >= probeMisses) {
					return
				}
				if down {
					c.config.Log.Warn("gateway of another network does not answer", "address", a.address, "port", a.port, "error", err)
				} else {
					c.config.Log.Info("gateway of another network answers again", "address", a.address, "port", a.port)
				}
				events = append(events, mesh.Event{Object: &mesh.GatewayHealth{Address: a.address, Port: a.port, Down: down}})
			})
		}
		wg.Wait()
		if len(events) > 0 && ctx.Err() == nil {
			c.feed(events)
		}
	}
}

func reach(ctx context.Context, a gatewayAddress) error {
	d := net.Dialer{Timeout: probeTimeout}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(a.address, strconv.Itoa(int(a.port))))
	if err != nil {
		return err
	}
	return conn.Close()
}
