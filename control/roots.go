package control

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/carrick-mesh/carrick/compile"
	"github.com/carrick-mesh/carrick/resource"
)

// RootsName is the secret under which every proxy is told the roots of the mesh.
const RootsName = "ROOTCA"

// roots is the trust bundle as a part of every list of secrets.
type roots struct {
	part *resource.Part
	at   time.Time // of being published
}

// PublishRoots makes pem, the roots' certificates, and crl, the revocation lists (none if empty), what
// proxies are told from now on.
func (c *Control) PublishRoots(pem, crl string) {
	r := rootsSecret([]byte(pem), []byte(crl))
	if was := c.roots.Load(); was != nil && was.part.Resources[0].Version == r.Version {
		return
	}
	c.roots.Store(&roots{&resource.Part{Resources: []*resource.Resource{r}}, time.Now()})
	select {
	case c.rootsSet <- struct{}{}:
	default:
	}
}

// rootsSecret encodes envoy.extensions.transport_sockets.tls.v3.Secret: name = 1,
// validation_context = 4 {trusted_ca = 1 {inline_bytes = 2}, crl = 7 {inline_bytes = 2}}.
func rootsSecret(pem, crl []byte) *resource.Resource {
	bytes := func(field protowire.Number, v []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, field, protowire.BytesType), v)
	}
	validation := bytes(1, bytes(2, pem))
	if len(crl) > 0 {
		validation = append(validation, bytes(7, bytes(2, crl))...)
	}
	return resource.New(RootsName, append(bytes(1, []byte(RootsName)), bytes(4, validation)...))
}

// refreshRoots takes the roots that are to be published now.
func (l *loop) refreshRoots() {
	if now := l.Control.roots.Load(); now != l.roots {
		l.roots = now
		clear(l.secrets)
	}
}

// withRoots returns the list with the roots in it, always the same for the same list.
func (l *loop) withRoots(list *resource.List) *resource.List {
	if l.roots == nil {
		return list
	}
	out := l.secrets[list]
	if out == nil {
		out = &resource.List{}
		if list != nil {
			out.Parts = append(out.Parts, list.Parts...)
		}
		out.Parts = append(out.Parts, l.roots.part)
		l.secrets[list] = out
	}
	return out
}

// dropSecrets forgets lists that no proxy has any more.
func (l *loop) dropSecrets(now []compile.Bundle) {
	if len(l.secrets) <= 2*len(now)+16 {
		return
	}
	keep := make(map[*resource.List]*resource.List, len(now))
	for _, b := range now {
		if out := l.secrets[b.Secrets]; out != nil {
			keep[b.Secrets] = out
		}
	}
	l.secrets = keep
}

// AwaitRoots returns when every connected proxy that asks for the roots has taken those that were
// published last, or with ctx's error.
func (c *Control) AwaitRoots(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	want := c.roots.Load()
	for {
		behind := ""
		n := 0
		for _, client := range c.server.Clients() {
			st, asks := client.Status()[resource.SecretType]
			if !asks {
				continue
			}
			b := client.Bundle()
			if want == nil || b != nil && holds(b.Lists[resource.SecretType], want.part) && st.Synced() && st.SentAt.After(want.at) {
				continue
			}
			n++
			behind = client.Node.ID
		}
		if n == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d proxies have not taken the new roots, for one %s: %w", n, behind, ctx.Err())
		case <-tick.C:
		}
	}
}

func holds(l *resource.List, p *resource.Part) bool {
	if l == nil {
		return false
	}
	for _, x := range l.Parts {
		if x == p {
			return true
		}
	}
	return false
}
