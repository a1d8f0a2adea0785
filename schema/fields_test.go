package schema

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
)

// written are the forms of what users write and something reads.
func written() []proto.Message {
	all := []proto.Message{&meshconfig.MeshConfig{}, &meshconfig.MeshNetworks{}}
	for _, k := range Kinds() {
		if k.Implemented && k.Spec != nil {
			all = append(all, k.Spec())
		}
	}
	return all
}

// TestLedger walks through every field that users can write, down to those without effect: each is in the
// ledger, and one that is said to have an effect is named by the code that reads it.
func TestLedger(t *testing.T) {
	code := sources(t)
	seen := map[protoreflect.FullName]bool{}
	var visit func(m protoreflect.MessageDescriptor)
	visit = func(m protoreflect.MessageDescriptor) {
		if !ours(m) || seen[m.FullName()] {
			return
		}
		seen[m.FullName()] = true
		known := ledger()[m.FullName()]
		if known == nil {
			t.Errorf("%s is not in fields.txt", m.FullName())
			return
		}
		for i := range m.Fields().Len() {
			fd := m.Fields().Get(i)
			why, ok := known[fd.Name()]
			switch {
			case !ok:
				t.Errorf("%s.%s is not in fields.txt", m.FullName(), fd.Name())
			case why != "":
			case !reads(code, fd):
				t.Errorf("%s.%s is said to have an effect, but nothing reads it", m.FullName(), fd.Name())
			case fd.IsMap():
				visit(fd.MapValue().Message())
			default:
				visit(fd.Message())
			}
		}
		for f := range known {
			if m.Fields().ByName(f) == nil {
				t.Errorf("%s has no field %s", m.FullName(), f)
			}
		}
	}
	for _, m := range written() {
		visit(m.ProtoReflect().Descriptor())
	}
	for name := range ledger() {
		if !seen[name] {
			t.Errorf("%s is in fields.txt, but no field with an effect leads to it", name)
		}
	}
}

// sources is the code that may read what users write.
func sources(t *testing.T) string {
	t.Helper()
	var code strings.Builder
	for _, folder := range []string{"mesh", "compile", "control", "kube", "inject", "agent", "ca", "cmd"} {
		err := filepath.WalkDir(filepath.Join("..", folder), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			b, err := os.ReadFile(path)
			code.Write(b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return code.String()
}

// reads reports whether the code names a field: by its getter, as a field of Go's, as the only member of a
// oneof, or in JSON.
func reads(code string, fd protoreflect.FieldDescriptor) bool {
	var name strings.Builder
	for part := range strings.SplitSeq(string(fd.Name()), "_") {
		if part == "" {
			continue
		}
		if c := part[0]; c < 'a' || c > 'z' {
			name.WriteByte('_') // as protoc-gen-go has it: consecutive_5xx_errors is Consecutive_5XxErrors
		}
		name.WriteString(strings.ToUpper(part[:1]) + part[1:])
	}
	goName := regexp.QuoteMeta(name.String())
	return regexp.MustCompile(`(?i)(\.(Get)?|_)`+goName+`\b`).MatchString(code) || strings.Contains(code, `"`+fd.JSONName())
}

func TestWithoutEffect(t *testing.T) {
	for _, tt := range []struct {
		name string
		spec proto.Message
		want []string
	}{
		{"nothing", &networking.VirtualService{Hosts: []string{"a"}}, nil},
		{"in a list", &networking.VirtualService{Http: []*networking.HTTPRoute{{}, {Fault: &networking.HTTPFaultInjection{
			Delay: &networking.HTTPFaultInjection_Delay{HttpDelayType: &networking.HTTPFaultInjection_Delay_ExponentialDelay{
				ExponentialDelay: durationpb.New(1)}}}}}},
			[]string{"http[1].fault.delay.exponentialDelay has no effect: Istio has never given it an effect"}},
		{"of the mesh", &meshconfig.MeshConfig{EnableTracing: true, AccessLogFile: "/dev/stdout",
			DefaultConfig: &meshconfig.ProxyConfig{Tracing: &meshconfig.Tracing{}}},
			[]string{"enableTracing has no effect: no spans are made", "defaultConfig.tracing has no effect: no spans are made"}},
	} {
		var got []string
		for _, u := range WithoutEffect(tt.spec) {
			got = append(got, u.String())
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s: %s", tt.name, d)
		}
	}
}
