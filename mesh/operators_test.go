package mesh

import (
	"testing"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
)

// TestOperators: what may be written into a format is known to the built-in proxy.
func TestOperators(t *testing.T) {
	for _, op := range operators {
		_, plain := accesslog.Parse("%"+op+"%", accesslog.Options{})
		_, with := accesslog.Parse("%"+op+"(a)%", accesslog.Options{})
		if plain != nil && with != nil {
			t.Errorf("%s: %v", op, plain)
		}
	}
}
