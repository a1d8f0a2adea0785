package compile

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"regexp/syntax"
	"strings"
	"unicode"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// refusal returns why a proxy would refuse a message that was built from a user's object, nil if it would
// not: the rules that Envoy's API states, and those that Envoy's code adds. A proxy refuses a whole
// listener, route table or cluster for one message in it.
func refusal(m proto.Message) error {
	if v, ok := m.(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			return stated(err)
		}
	}
	return inspect(m.ProtoReflect())
}

// violation is an error of a generated Validate.
type violation interface {
	error
	Field() string
	Reason() string
	Cause() error
}

// stated makes one line of nested violations: the path, and what is wrong there.
func stated(err error) error {
	var path []string
	for {
		var v violation
		if !errors.As(err, &v) {
			break
		}
		path, err = append(path, v.Field()), v.Cause()
		if err == nil {
			return fmt.Errorf("%s: %s", strings.Join(path, "."), v.Reason())
		}
	}
	return fmt.Errorf("%s: %w", strings.Join(path, "."), err)
}

// inspect looks for what Validate cannot know.
func inspect(m protoreflect.Message) (err error) {
	if err := added(m.Interface()); err != nil {
		return err
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil || f.IsMap() && f.MapValue().Message() == nil:
			return true
		case f.IsMap():
			v.Map().Range(func(_ protoreflect.MapKey, x protoreflect.Value) bool {
				err = inspect(x.Message())
				return err == nil
			})
		case f.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = inspect(v.List().Get(i).Message())
			}
		default:
			err = inspect(v.Message())
		}
		return err == nil
	})
	return err
}

// added holds the rules of Envoy's code.
func added(m proto.Message) error {
	switch x := m.(type) {
	case *anypb.Any:
		n, err := x.UnmarshalNew()
		if err != nil {
			return err
		}
		return refusal(n)
	case *durationpb.Duration:
		return durationRefusal(x)
	case *matcher.RegexMatcher:
		_, err := pattern(x.GetRegex())
		return err
	case *matcher.RegexMatchAndSubstitute:
		return substitutionRefusal(x)
	case *core.HeaderValueOption:
		return headerRefusal(x.GetHeader().GetKey())
	case *routev3.DirectResponseAction:
		if n := len(x.GetBody().GetInlineString()) + len(x.GetBody().GetInlineBytes()); n > maxBody {
			return fmt.Errorf("a body of %d bytes is longer than %d", n, maxBody)
		}
	case *routev3.Route:
		return removalRefusal(x.GetRequestHeadersToRemove(), x.GetResponseHeadersToRemove())
	case *routev3.WeightedCluster_ClusterWeight:
		return removalRefusal(x.GetRequestHeadersToRemove(), x.GetResponseHeadersToRemove())
	case *routev3.WeightedCluster:
		sum := uint64(0)
		for _, c := range x.GetClusters() {
			sum += uint64(c.GetWeight().GetValue())
		}
		return weightRefusal(sum)
	case *tcpproxy.TcpProxy_WeightedCluster:
		sum := uint64(0)
		for _, c := range x.GetClusters() {
			sum += uint64(c.GetWeight())
		}
		return weightRefusal(sum)
	case *listenerv3.FilterChainMatch:
		return serverNameRefusal(x.GetServerNames())
	case *clusterv3.Cluster_MaglevLbConfig:
		if n := x.GetTableSize().GetValue(); x.GetTableSize() != nil && !prime(n) {
			return fmt.Errorf("a Maglev table of %d places: the number must be a prime", n)
		}
	}
	return nil
}

// maxBody bounds a direct response's body; every route table states it.
const maxBody = 1 << 20

// maxSeconds is the longest duration that Envoy can count in nanoseconds.
const maxSeconds = math.MaxInt64/1_000_000_000 - 1

func durationRefusal(d *durationpb.Duration) error {
	if d.CheckValid() != nil || d.GetSeconds() > maxSeconds || d.GetSeconds() < 0 || d.GetNanos() < 0 {
		return fmt.Errorf("the duration of %d s is out of range (0-%d s)", d.GetSeconds(), int64(maxSeconds))
	}
	return nil
}

// maxProgram bounds what a regular expression costs, in the instructions that RE2 makes of it: the agent starts
// Envoy with this as re2.max_program_size.error_level.
const maxProgram = 32768

// pattern compiles a regular expression as both proxies do. RE2 and Go's library have one syntax, but for classes
// that Go alone has names for, which are refused.
func pattern(s string) (*regexp.Regexp, error) {
	if s == "" {
		return nil, errors.New("the regular expression is empty")
	}
	if c := foreignClass(s); c != "" {
		return nil, fmt.Errorf("%q is not a regular expression: there is no class of characters %q", s, c)
	}
	parsed, err := syntax.Parse(s, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("%q is not a regular expression: %w", s, err)
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, fmt.Errorf("%q is not a regular expression: %w", s, err)
	}
	size := 0
	for _, i := range program.Inst {
		size += 1 + 2*len(i.Rune)
	}
	if size > maxProgram {
		return nil, fmt.Errorf("the regular expression is too large: about %d instructions of at most %d", size, maxProgram)
	}
	return regexp.Compile(s)
}

var unicodeClass = regexp.MustCompile(`^\\[pP](?:\{\^?([^}]*)\}|(.))`)

// foreignClass returns the first class of characters whose name RE2 does not have, "" if there is none.
func foreignClass(s string) string {
	for i := strings.IndexByte(s, '\\'); i >= 0 && i+1 < len(s); i = strings.IndexByte(s, '\\') {
		s = s[i:]
		skip := 2
		switch s[1] {
		case 'Q':
			if skip = strings.Index(s, `\E`); skip < 0 {
				return ""
			}
			skip += 2
		case 'p', 'P':
			m := unicodeClass.FindStringSubmatch(s)
			if m == nil {
				return s
			}
			name := m[1] + m[2]
			if category := unicode.Categories[name] != nil && name != "LC" && name != "Cn"; !category && unicode.Scripts[name] == nil && name != "Any" {
				return name
			}
			skip = len(m[0])
		}
		s = s[skip:]
	}
	return ""
}

// substitutionRefusal checks that a rewrite refers only to groups that its pattern has.
func substitutionRefusal(x *matcher.RegexMatchAndSubstitute) error {
	re, err := pattern(x.GetPattern().GetRegex())
	if err != nil {
		return err
	}
	s := x.GetSubstitution()
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			continue
		}
		i++
		switch {
		case i == len(s):
			return fmt.Errorf(`the rewrite %q ends in a backslash, which must be doubled`, s)
		case s[i] == '\\':
		case s[i] < '0' || s[i] > '9':
			return fmt.Errorf(`the rewrite %q has a backslash before %q: only a digit or a backslash may follow`, s, s[i])
		case int(s[i]-'0') > re.NumSubexp():
			return fmt.Errorf(`the rewrite %q names group %c, but its pattern has %d`, s, s[i], re.NumSubexp())
		}
	}
	return nil
}

// headerRefusal: a proxy changes Host and the pseudo headers by other means only.
func headerRefusal(name string) error {
	if strings.HasPrefix(name, ":") || strings.EqualFold(name, "host") {
		return fmt.Errorf("header %q cannot be set or removed", name)
	}
	return nil
}

func removalRefusal(lists ...[]string) error {
	for _, names := range lists {
		for _, n := range names {
			if err := headerRefusal(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// weightRefusal: weights are counted in 32 bits.
func weightRefusal(sum uint64) error {
	if sum == 0 || sum > math.MaxUint32 {
		return fmt.Errorf("the weights of its destinations add up to %d, which is out of range (1-%d)", sum, uint32(math.MaxUint32))
	}
	return nil
}

// serverNameRefusal: of patterns, a listener takes "*.example.com" only.
func serverNameRefusal(names []string) error {
	for _, n := range names {
		if rest := strings.TrimPrefix(n, "*."); n == "" || strings.Contains(rest, "*") || rest == "" {
			return fmt.Errorf("%q cannot be chosen by SNI: name a host, or *.DOMAIN", n)
		}
	}
	return nil
}

func prime(n uint64) bool {
	for i := uint64(2); i*i <= n; i++ {
		if n%i == 0 {
			return false
		}
	}
	return n > 1
}
