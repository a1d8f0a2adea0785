package announce

import (
	"bytes"
	"crypto/sha256"
	"net/netip"
)

// Owner returns which of the nodes answers for an address: the first in the order of
// SHA-256(NODE#ADDRESS), as in MetalLB, so that addresses are spread, all who know the same
// nodes agree, and the loss of one node moves only its addresses. No nodes: "".
func Owner(addr netip.Addr, nodes []string) string {
	var owner string
	var least [sha256.Size]byte
	for _, n := range nodes {
		h := sha256.Sum256([]byte(n + "#" + addr.String()))
		if owner == "" || bytes.Compare(h[:], least[:]) < 0 {
			owner, least = n, h
		}
	}
	return owner
}
