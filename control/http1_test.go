package control

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/carrick-mesh/carrick/compile"
)

func TestHTTP1OfANode(t *testing.T) {
	for _, tt := range []struct {
		meta map[string]any
		all  bool
		want compile.HTTP1
	}{
		{map[string]any{}, false, compile.HTTP1{}},
		{map[string]any{}, true, compile.HTTP1{Accept10: true}},
		{map[string]any{"HTTP10": "1", "IDLE_TIMEOUT": "90s"}, false, compile.HTTP1{Accept10: true, Idle: 90 * time.Second}},
		{map[string]any{"HTTP10": "0", "IDLE_TIMEOUT": "soon"}, false, compile.HTTP1{}},
		{map[string]any{"IDLE_TIMEOUT": "-1s", "PROXY_CONFIG": "x"}, false, compile.HTTP1{}},
		{map[string]any{"PROXY_CONFIG": map[string]any{"proxyHeaders": map[string]any{"preserveHttp1HeaderCase": true}}}, false, compile.HTTP1{KeepCase: true}},
	} {
		s, err := structpb.NewStruct(tt.meta)
		if err != nil {
			t.Fatal(err)
		}
		if got := http1Of(s.Fields, tt.all); got != tt.want {
			t.Errorf("%v: %+v", tt.meta, got)
		}
	}
}
