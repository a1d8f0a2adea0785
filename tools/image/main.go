// Command image writes Carrick's container images, and those of the samples, as tar files
// that docker load, ctr images import, kind load and lab image load take. It needs no Docker.
//
//	image --version V --bin bin --out dist/images [--envoy FILE] [--hub docker.io/carrickmesh] [--made FILE]
//
// The same inputs give the same bytes: times in the layers are zero, names are sorted. With --made, what
// would come out as it is already is not packed again.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func main() {
	var o options
	flag.StringVar(&o.version, "version", "dev", "tag of Carrick's images")
	flag.StringVar(&o.hub, "hub", "docker.io/carrickmesh", "registry and path of Carrick's images")
	flag.StringVar(&o.bin, "bin", "bin", "folder with carrick, carrick-proxy, app and grpcecho")
	flag.StringVar(&o.out, "out", "dist/images", "folder to write to")
	flag.StringVar(&o.arch, "arch", runtime.GOARCH, "architecture that the programs were built for")
	flag.StringVar(&o.envoy, "envoy", "", "Envoy's program; if given, carrick-envoy.tar is written too")
	flag.BoolVar(&o.samples, "samples", true, "write samples.tar")
	flag.StringVar(&o.made, "made", "", "file that remembers of what the archives were made; one whose inputs are as they were is left as it is")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

type options struct {
	version, hub, bin, out, arch, envoy, made string
	samples                                   bool
}

func run(o options) error {
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	made, err := readMade(o.made)
	if err != nil {
		return err
	}
	for _, a := range o.archives() {
		if err := made.unless(o, a, func() error { return o.write(a) }); err != nil {
			return fmt.Errorf("%s: %w", a.file, err)
		}
	}
	return nil
}

// archive is one of the files that are written.
type archive struct {
	file   string
	from   []string // the files that it is made of
	images func() (map[string]v1.Image, error)
}

func (o options) archives() []archive {
	bin := func(name string) string { return filepath.Join(o.bin, name) }
	ours := []string{bin("carrick"), bin("carrick-proxy")}
	out := []archive{{"carrick.tar", ours, func() (map[string]v1.Image, error) {
		img, err := o.carrick()
		return map[string]v1.Image{o.hub + "/carrick:" + o.version: img}, err
	}}}
	if o.envoy != "" {
		from := slices.Concat(ours, []string{o.envoy}, libraries(o.envoy))
		out = append(out, archive{"carrick-envoy.tar", from, func() (map[string]v1.Image, error) {
			img, err := o.withEnvoy()
			return map[string]v1.Image{o.hub + "/carrick-envoy:" + o.version: img}, err
		}})
	}
	if o.samples {
		from := []string{bin("app"), bin("grpcecho")}
		for _, p := range []string{"curl", "busybox"} {
			if path, err := exec.LookPath(p); err == nil { // else the image says what is missing
				from = append(append(from, path), libraries(path)...)
			}
		}
		out = append(out, archive{"samples.tar", from, o.sampleImages})
	}
	return out
}

func (o options) withEnvoy() (v1.Image, error) {
	carrick, err := o.carrick()
	if err != nil {
		return nil, err
	}
	var l layer
	l.program("usr/local/bin/envoy", o.envoy)
	return l.onto(carrick)
}

// carrick is the one image of the control plane, the gateways and the sidecars.
func (o options) carrick() (v1.Image, error) {
	var l layer
	l.base()
	l.file("usr/local/bin/carrick", filepath.Join(o.bin, "carrick"), 0o755)
	l.file("usr/local/bin/carrick-proxy", filepath.Join(o.bin, "carrick-proxy"), 0o755)
	l.link("usr/local/bin/pilot-discovery", "carrick") // what istioctl runs in the pods
	l.link("usr/local/bin/pilot-agent", "carrick-proxy")
	return o.image(&l, v1.Config{
		Entrypoint: []string{"/usr/local/bin/carrick"},
		User:       "1337:1337",
		WorkingDir: "/",
		Env:        []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Labels: map[string]string{
			"org.opencontainers.image.title":    "carrick",
			"org.opencontainers.image.version":  o.version,
			"org.opencontainers.image.licenses": "Apache-2.0",
		},
	})
}

// sampleImages have the names that Istio's published sample YAML uses, of several releases.
func (o options) sampleImages() (map[string]v1.Image, error) {
	out := map[string]v1.Image{}
	var app layer
	app.base()
	app.file("usr/local/bin/app", filepath.Join(o.bin, "app"), 0o755)
	sample := func(service, version string, names ...string) error {
		img, err := o.image(&app, v1.Config{
			Entrypoint: []string{"/usr/local/bin/app", service},
			User:       "1000:1000",
			Env:        []string{"SERVICE_VERSION=" + version},
		})
		for _, n := range names {
			out[n] = img
		}
		return err
	}
	for _, v := range []string{"v1", "v2"} {
		n := "examples-helloworld-" + v
		if err := sample("helloworld", v, "docker.io/istio/"+n+":latest", "docker.io/istio/"+n+":1.0", "registry.istio.io/release/"+n+":1.0"); err != nil {
			return nil, err
		}
	}
	for _, sv := range []string{"productpage v1", "details v1", "ratings v1", "reviews v1", "reviews v2", "reviews v3"} {
		service, version, _ := strings.Cut(sv, " ")
		var names []string
		n := "examples-bookinfo-" + service + "-" + version
		for _, tag := range []string{"1.16.4", "1.17.0", "1.20.3"} {
			names = append(names, "docker.io/istio/"+n+":"+tag)
		}
		names = append(names, "registry.istio.io/release/"+n+":1.20.3")
		if err := sample(service, version, names...); err != nil {
			return nil, err
		}
	}
	var echo layer
	echo.base()
	echo.file("usr/local/bin/grpcecho", filepath.Join(o.bin, "grpcecho"), 0o755)
	for _, v := range []string{"v1", "v2"} {
		img, err := o.image(&echo, v1.Config{
			Entrypoint: []string{"/usr/local/bin/grpcecho"},
			Cmd:        []string{"server"},
			User:       "1000:1000",
			Env:        []string{"SERVICE_VERSION=" + v},
		})
		if err != nil {
			return nil, err
		}
		out[o.hub+"/examples-grpc-echo-"+v+":1.0"] = img
	}

	var curl layer
	curl.base()
	for program, package_ := range map[string]string{"curl": "curl", "busybox": "busybox-static"} {
		path, err := exec.LookPath(program)
		if err != nil {
			return nil, fmt.Errorf("the image of sleep needs the program %s: apt-get install %s", program, package_)
		}
		curl.program("usr/bin/"+program, path)
	}
	applets, err := exec.Command("busybox", "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("listing busybox's programs: %w", err)
	}
	for _, a := range strings.Fields(string(bytes.TrimSpace(applets))) {
		if a != "busybox" {
			curl.link("bin/"+a, "/usr/bin/busybox")
		}
	}
	img, err := o.image(&curl, v1.Config{
		Entrypoint: []string{"/usr/bin/curl"},
		User:       "100:100",
		Env:        []string{"PATH=/usr/local/bin:/usr/bin:/bin"},
	})
	for _, tag := range []string{"latest", "8.16.0", "7.85.0"} {
		out["docker.io/curlimages/curl:"+tag] = img
	}
	return out, err
}

// image makes an image of one layer.
func (o options) image(l *layer, c v1.Config) (v1.Image, error) {
	img, err := l.onto(empty.Image)
	if err != nil {
		return nil, err
	}
	return mutate.ConfigFile(img, func() *v1.ConfigFile {
		f, _ := img.ConfigFile() // of an image in memory: cannot fail
		f = f.DeepCopy()
		f.Architecture, f.OS, f.Config = o.arch, "linux", c
		return f
	}())
}

// write puts an archive's images into its file, atomically.
func (o options) write(a archive) error {
	images, err := a.images()
	if err != nil {
		return err
	}
	refs := map[name.Reference]v1.Image{}
	for n, img := range images {
		r, err := name.NewTag(n, name.StrictValidation)
		if err != nil {
			return fmt.Errorf("image name %q: %w", n, err)
		}
		refs[r] = img
	}
	var b bytes.Buffer
	if err := tarball.MultiRefWrite(refs, &b); err != nil {
		return err
	}
	sorted, err := inOrder(&b)
	if err != nil {
		return err
	}
	path := filepath.Join(o.out, a.file)
	if err := replace(path, sorted); err != nil {
		return err
	}
	fmt.Printf("%s: %d images\n", path, len(images))
	return nil
}

// replace writes a file atomically.
func replace(path string, data []byte) error {
	if err := os.WriteFile(path+".tmp", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}
