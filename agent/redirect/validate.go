package redirect

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"
)

// Validate proves by a connection that outbound redirection works here: one to an address that
// exists nowhere (RFC 5737) arrives at the proxy's port, where nothing must listen yet. It has
// nothing to prove where not all destinations are redirected.
func Validate(ctx context.Context, c Config) error {
	if !c.OutboundRanges.All || !c.OutboundGroups.All {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(c.ProxyPort))))
	if err != nil {
		return fmt.Errorf("validating the redirection: %w", err)
	}
	defer l.Close()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp4", "192.0.2.1:15002")
	if err != nil {
		return fmt.Errorf("validating the redirection: a connection to 192.0.2.1:15002 did not reach port %d: %w", c.ProxyPort, err)
	}
	return conn.Close()
}
