package redirect

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the name of our table, one in each family.
const tableName = "carrick"

func (f family) nft() nftables.TableFamily {
	if f.bits == 32 {
		return nftables.TableFamilyIPv4
	}
	return nftables.TableFamilyIPv6
}

// loadNftables replaces our table of that family by one with the rules of c, in one transaction.
func loadNftables(c Config, f family) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: f.nft(), Name: tableName}
	conn.AddTable(t) // so that there is one to delete
	conn.DelTable(t)
	conn.AddTable(t)
	for _, ch := range chains(c, f) {
		nc := conn.AddChain(&nftables.Chain{
			Table: t, Name: ch.name, Type: nftables.ChainTypeNAT,
			Hooknum: hook(ch.name), Priority: nftables.ChainPriorityNATDest,
		})
		for _, r := range ch.rules {
			conn.AddRule(&nftables.Rule{Table: t, Chain: nc, Exprs: exprs(r, f)})
		}
	}
	return conn.Flush()
}

// unloadNftables removes our table of that family, if there is one.
func unloadNftables(f family) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: f.nft(), Name: tableName}
	conn.AddTable(t)
	conn.DelTable(t)
	return conn.Flush()
}

func hook(chain string) *nftables.ChainHook {
	if chain == "inbound" {
		return nftables.ChainHookPrerouting
	}
	return nftables.ChainHookOutput
}

// exprs writes a rule in the expressions of the kernel's virtual machine, in the order of nftRule.
func exprs(r rule, f family) (es []expr.Any) {
	meta := func(key expr.MetaKey, op expr.CmpOp, data []byte) {
		es = append(es, &expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: data})
	}
	port := func(op expr.CmpOp, p uint16) {
		es = append(es,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: op, Register: 1, Data: binaryutil.BigEndian.PutUint16(p)})
	}
	meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_TCP})
	if r.in != "" {
		meta(expr.MetaKeyIIFNAME, expr.CmpOpEq, ifname(r.in))
	}
	if r.out != "" {
		meta(expr.MetaKeyOIFNAME, expr.CmpOpEq, ifname(r.out))
	}
	if r.src.IsValid() {
		es = append(es, address(f, true, expr.CmpOpEq, r.src)...)
	}
	if r.dst.IsValid() {
		es = append(es, address(f, false, expr.CmpOpEq, r.dst)...)
	}
	if r.notDst.IsValid() {
		es = append(es, address(f, false, expr.CmpOpNeq, r.notDst)...)
	}
	if r.dport != 0 {
		port(expr.CmpOpEq, r.dport)
	}
	if r.notDport != 0 {
		port(expr.CmpOpNeq, r.notDport)
	}
	if r.uid != nil {
		meta(expr.MetaKeySKUID, expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(*r.uid))
	}
	if r.gid != nil {
		meta(expr.MetaKeySKGID, expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(*r.gid))
	}
	for _, g := range r.notGIDs {
		meta(expr.MetaKeySKGID, expr.CmpOpNeq, binaryutil.NativeEndian.PutUint32(g))
	}
	if r.to == 0 {
		return append(es, &expr.Verdict{Kind: expr.VerdictReturn})
	}
	return append(es,
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(r.to)},
		&expr.Redir{RegisterProtoMin: 1})
}

// address compares the source or destination address of the IP header with a range.
func address(f family, src bool, op expr.CmpOp, p netip.Prefix) []expr.Any {
	size := uint32(f.bits / 8)
	offset := uint32(12) // RFC 791: source, then destination
	if f.bits == 128 {
		offset = 8 // RFC 8200
	}
	if !src {
		offset += size
	}
	es := []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}}
	if !p.IsSingleIP() {
		mask := make([]byte, size)
		for i := range p.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		es = append(es, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)})
	}
	return append(es, &expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()})
}

func ifname(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}
