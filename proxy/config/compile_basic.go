package config

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
)

// orDuration returns d, or def if it is absent; negative durations count as 0.
func orDuration(d *durationpb.Duration, def time.Duration) time.Duration {
	if d == nil {
		return def
	}
	return max(d.AsDuration(), 0)
}

func orUint32(v *wrapperspb.UInt32Value, def uint32) uint32 {
	if v == nil {
		return def
	}
	return v.Value
}

func orUint64(v *wrapperspb.UInt64Value, def uint64) uint64 {
	if v == nil {
		return def
	}
	return v.Value
}

func orBool(v *wrapperspb.BoolValue, def bool) bool {
	if v == nil {
		return def
	}
	return v.Value
}

func compileRegex(pattern string) (*regexp.Regexp, error) {
	re, err := regexp.Compile(pattern) // by itself: a parenthesis of its own must not close ours
	if err == nil {
		re, err = regexp.Compile(`^(?:` + pattern + `)$`)
	}
	if err != nil {
		return nil, errors.New("is not a regular expression of RE2: " + strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	return re, nil
}

func compileString(m *matcher.StringMatcher) (StringMatcher, error) {
	s := StringMatcher{IgnoreCase: m.IgnoreCase}
	switch p := m.MatchPattern.(type) {
	case *matcher.StringMatcher_Exact:
		s.Kind, s.Value = MatchExact, p.Exact
	case *matcher.StringMatcher_Prefix:
		s.Kind, s.Value = MatchPrefix, p.Prefix
	case *matcher.StringMatcher_Suffix:
		s.Kind, s.Value = MatchSuffix, p.Suffix
	case *matcher.StringMatcher_Contains:
		s.Kind, s.Value = MatchContains, p.Contains
	case *matcher.StringMatcher_SafeRegex:
		re, err := compileRegex(p.SafeRegex.GetRegex())
		if err != nil {
			return s, in("safe_regex.regex", err)
		}
		s.Kind, s.Value, s.Regex = MatchRegex, p.SafeRegex.GetRegex(), re
		return s, nil
	default:
		return s, errors.New("has no pattern")
	}
	if s.IgnoreCase {
		s.Value = strings.ToLower(s.Value)
	}
	return s, nil
}

func compileHeaderMatcher(m *route.HeaderMatcher) (HeaderMatcher, error) {
	h := HeaderMatcher{Name: strings.ToLower(m.Name), Invert: m.InvertMatch, MissingAsEmpty: m.TreatMissingHeaderAsEmpty}
	if h.Name == "" {
		return h, in("name", errors.New("is empty"))
	}
	var err error
	switch s := m.HeaderMatchSpecifier.(type) {
	case nil:
		h.Present = true
	case *route.HeaderMatcher_PresentMatch:
		h.Present = true
		h.Invert = h.Invert != !s.PresentMatch
	case *route.HeaderMatcher_RangeMatch:
		h.Range = &Range{s.RangeMatch.Start, s.RangeMatch.End}
	case *route.HeaderMatcher_StringMatch:
		h.Value, err = compileString(s.StringMatch)
		err = in("string_match", err)
	case *route.HeaderMatcher_ExactMatch:
		h.Value = StringMatcher{Kind: MatchExact, Value: s.ExactMatch}
	case *route.HeaderMatcher_PrefixMatch:
		h.Value = StringMatcher{Kind: MatchPrefix, Value: s.PrefixMatch}
	case *route.HeaderMatcher_SuffixMatch:
		h.Value = StringMatcher{Kind: MatchSuffix, Value: s.SuffixMatch}
	case *route.HeaderMatcher_ContainsMatch:
		h.Value = StringMatcher{Kind: MatchContains, Value: s.ContainsMatch}
	case *route.HeaderMatcher_SafeRegexMatch:
		h.Value = StringMatcher{Kind: MatchRegex, Value: s.SafeRegexMatch.GetRegex()}
		h.Value.Regex, err = compileRegex(s.SafeRegexMatch.GetRegex())
		err = in("safe_regex_match.regex", err)
	}
	return h, err
}

func compileHeaderMatchers(field string, ms []*route.HeaderMatcher) ([]HeaderMatcher, error) {
	var out []HeaderMatcher
	for i, m := range ms {
		h, err := compileHeaderMatcher(m)
		if err != nil {
			return nil, inIndex(field, i, err)
		}
		out = append(out, h)
	}
	return out, nil
}

func compileFraction(f *typev3.FractionalPercent) (Fraction, error) {
	d := map[typev3.FractionalPercent_DenominatorType]uint32{
		typev3.FractionalPercent_HUNDRED:      100,
		typev3.FractionalPercent_TEN_THOUSAND: 10_000,
		typev3.FractionalPercent_MILLION:      1_000_000,
	}[f.GetDenominator()]
	if d == 0 {
		return Fraction{}, in("denominator", notSupported(f.GetDenominator().String()))
	}
	return Fraction{f.GetNumerator(), d}, nil
}

// runtimeFraction returns nil for a fraction that is absent.
func runtimeFraction(f *core.RuntimeFractionalPercent) (*Fraction, error) {
	if f == nil {
		return nil, nil
	}
	x, err := compileFraction(f.DefaultValue)
	return &x, in("default_value", err)
}

// percent turns 0..100 into a fraction with two decimals.
func percent(p *typev3.Percent, def float64) Fraction {
	if p != nil {
		def = p.Value
	}
	return Fraction{uint32(min(max(def, 0), 100) * 100), 10_000}
}

func compileRewrite(r *matcher.RegexMatchAndSubstitute) (*RegexRewrite, error) {
	if r == nil {
		return nil, nil
	}
	re, err := regexp.Compile(r.GetPattern().GetRegex())
	if err != nil {
		return nil, in("pattern.regex", errors.New("is not a regular expression of RE2: "+strings.TrimPrefix(err.Error(), "error parsing regexp: ")))
	}
	sub, err := substitution(r.Substitution, re.NumSubexp())
	return &RegexRewrite{re, sub}, in("substitution", err)
}

// substitution turns RE2's "\1" into Go's "${1}".
func substitution(s string, groups int) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '$':
			b.WriteString("$$")
		case c != '\\':
			b.WriteByte(c)
		case i+1 < len(s) && s[i+1] == '\\':
			b.WriteByte('\\')
			i++
		case i+1 < len(s) && '0' <= s[i+1] && s[i+1] <= '9':
			i++
			if int(s[i]-'0') > groups {
				return "", fmt.Errorf(`\%c: the pattern has only %d groups`, s[i], groups)
			}
			fmt.Fprintf(&b, "${%c}", s[i])
		default:
			return "", errors.New(`has a lone "\"`)
		}
	}
	return b.String(), nil
}

func compileHeaderMutations(addField string, add []*core.HeaderValueOption, removeField string, remove []string) ([]HeaderMutation, error) {
	var out []HeaderMutation
	for i, name := range remove {
		name = strings.ToLower(name)
		if name == "" || name[0] == ':' || name == "host" {
			return nil, inIndex(removeField, i, fmt.Errorf("%q cannot be removed", name))
		}
		out = append(out, HeaderMutation{Name: name, Remove: true})
	}
	for i, o := range add {
		m, err := compileHeaderOption(o)
		if err != nil {
			return nil, inIndex(addField, i, err)
		}
		out = append(out, m)
	}
	// What is overwritten goes first, whatever the order of the list: so does Envoy.
	slices.SortStableFunc(out, func(a, b HeaderMutation) int { return a.turn() - b.turn() })
	return out, nil
}

func (m *HeaderMutation) turn() int {
	switch {
	case m.Remove:
		return 0
	case m.Action == HeaderOverwrite || m.Action == HeaderOverwriteIfExists:
		return 1
	}
	return 2
}

func compileHeaderOption(o *core.HeaderValueOption) (HeaderMutation, error) {
	m := HeaderMutation{Name: strings.ToLower(o.GetHeader().GetKey()), KeepEmpty: o.KeepEmptyValue}
	if !validHeaderName(m.Name) {
		return m, in("header.key", fmt.Errorf("%q is no header name", m.Name))
	}
	switch o.AppendAction {
	case core.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
		if o.Append != nil && !o.Append.Value {
			m.Action = HeaderOverwrite
		}
	case core.HeaderValueOption_ADD_IF_ABSENT:
		m.Action = HeaderAddIfAbsent
	case core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
		m.Action = HeaderOverwrite
	case core.HeaderValueOption_OVERWRITE_IF_EXISTS:
		m.Action = HeaderOverwriteIfExists
	default:
		return m, in("append_action", notSupported(o.AppendAction.String()))
	}
	value, field := o.GetHeader().GetValue(), "header.value"
	if raw := o.GetHeader().GetRawValue(); len(raw) > 0 {
		value, field = string(raw), "header.raw_value"
	}
	if strings.ContainsAny(value, "\r\n\x00") {
		return m, in(field, errors.New("has a control character"))
	}
	f, err := accesslog.Parse(value, accesslog.Options{Headers: true})
	if err != nil {
		return m, in(field, err)
	}
	var constant bool
	if m.Value, constant = f.Constant(); !constant {
		m.Format = f
	}
	return m, nil
}

func validHeaderName(s string) bool {
	if s == "" {
		return false
	}
	if s[0] == ':' {
		return s == ":path" || s == ":authority" || s == ":method" || s == ":scheme"
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0 {
			continue
		}
		return false
	}
	return true
}

// compileData returns a data source; environment variables are refused by fields.txt.
func compileData(d *core.DataSource) Data {
	switch s := d.GetSpecifier().(type) {
	case *core.DataSource_Filename:
		return Data{File: s.Filename}
	case *core.DataSource_InlineBytes:
		return Data{Inline: s.InlineBytes}
	case *core.DataSource_InlineString:
		return Data{Inline: []byte(s.InlineString)}
	}
	return Data{}
}

// ipPort returns the address of a TCP socket address that is an IP.
func ipPort(a *core.SocketAddress) (netip.AddrPort, error) {
	if a.GetProtocol() != core.SocketAddress_TCP {
		return netip.AddrPort{}, in("protocol", notSupported(a.GetProtocol().String()))
	}
	ip, err := netip.ParseAddr(a.GetAddress())
	if err != nil {
		return netip.AddrPort{}, in("address", fmt.Errorf("%q is no IP address", a.GetAddress()))
	}
	if p := a.GetPortValue(); p > 65535 {
		return netip.AddrPort{}, in("port_value", fmt.Errorf("%d is no port", p))
	}
	return netip.AddrPortFrom(ip, uint16(a.GetPortValue())), nil
}

func compileKeepalive(k *core.TcpKeepalive) *TCPKeepalive {
	if k == nil {
		return nil
	}
	return &TCPKeepalive{
		Probes:   orUint32(k.KeepaliveProbes, 0),
		Idle:     time.Duration(orUint32(k.KeepaliveTime, 0)) * time.Second,
		Interval: time.Duration(orUint32(k.KeepaliveInterval, 0)) * time.Second,
	}
}

// Socket options by Linux's numbers.
const (
	solSocket, soKeepalive                                            = 1, 9
	ipprotoTCP, tcpKeepidle, tcpKeepintvl, tcpKeepcnt, tcpUserTimeout = 6, 4, 5, 6, 18
)

// compileSocketOptions takes keepalive and the user timeout into k, which may be nil, and refuses
// other options.
func compileSocketOptions(k *TCPKeepalive, os []*core.SocketOption) (*TCPKeepalive, error) {
	if len(os) == 0 {
		return k, nil
	}
	var n TCPKeepalive
	if k != nil {
		n = *k
	}
	for i, o := range os {
		v := o.GetIntValue()
		switch [2]int64{o.Level, o.Name} {
		case [2]int64{solSocket, soKeepalive}:
			if v == 0 {
				return nil, inIndex("socket_options", i, notSupported("switching keepalive off"))
			}
		case [2]int64{ipprotoTCP, tcpKeepidle}:
			n.Idle = time.Duration(v) * time.Second
		case [2]int64{ipprotoTCP, tcpKeepintvl}:
			n.Interval = time.Duration(v) * time.Second
		case [2]int64{ipprotoTCP, tcpKeepcnt}:
			n.Probes = uint32(v)
		case [2]int64{ipprotoTCP, tcpUserTimeout}:
			n.UserTimeout = time.Duration(v) * time.Millisecond
		default:
			return nil, inIndex("socket_options", i, notSupported(fmt.Sprintf("level %d, name %d", o.Level, o.Name)))
		}
	}
	return &n, nil
}
