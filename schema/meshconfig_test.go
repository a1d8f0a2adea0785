package schema

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	meshconfig "istio.io/api/mesh/v1alpha1"
)

// What is said to have no effect exists, and no code reads it: who implements a field takes it off the
// list.
func TestMeshConfigWithoutEffect(t *testing.T) {
	var code strings.Builder
	for _, folder := range []string{"mesh", "compile", "control", "kube", "inject", "ca", "cmd"} {
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
	fields := (&meshconfig.MeshConfig{}).ProtoReflect().Descriptor().Fields()
	for name, without := range MeshConfigWithoutEffect() {
		if fields.ByJSONName(name) == nil || without == "" {
			t.Errorf("MeshConfig has no field %s, or what is missing is not said", name)
		}
		if getter := ".Get" + strings.ToUpper(name[:1]) + name[1:] + "("; strings.Contains(code.String(), getter) {
			t.Errorf("%s is said to have no effect, but %s) is called", name, getter)
		}
	}
}
